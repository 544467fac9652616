"""Who may import whom: the table of docs/architecture.md, enforced on every import statement of the product."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "src", ROOT / "attacks" / "src")
MODULES = {
    ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path
    for source in SOURCES
    for path in sorted(source.rglob("*.py"))
}

MODEL = {"atoll.model"}
RULES: dict[str, set[str]] = {
    "atoll.model": MODEL,
    "atoll.config": MODEL,
    "atoll.http1": set(),
    "atoll.packets": set(),
    "atoll.wire.envd": MODEL | {"atoll.http1", "atoll.wire.envd"},
    "atoll.wire.channel": {"atoll.packets"},
    "atoll.wire.unix": MODEL | {"atoll.wire.channel"},
    "atoll.wire.node": MODEL | {"atoll.wire.node", "atoll.wire.channel", "atoll.wire.unix"},
    "atoll.wire.egress": MODEL | {"atoll.wire.egress", "atoll.wire.channel", "atoll.isolation.base", "atoll.tls"},
    "atoll.wire": MODEL | {"atoll.wire"},
    "atoll.guest": MODEL | {"atoll.http1", "atoll.wire.envd", "atoll.guest"},
    "atoll.isolation.base": MODEL,
    "atoll.isolation.directory": MODEL,
    "atoll.isolation.registry": MODEL | {"atoll.isolation.base"},
    "atoll.isolation.guest_client": MODEL | {"atoll.isolation.base"},
    "atoll.isolation.linux": MODEL | {"atoll.isolation.linux", "atoll.isolation.base"},
    "atoll.tls": MODEL | {"atoll.tls"},
    # The sandbox's first process in the gVisor tier, which becomes the guest.
    "atoll.isolation.gvisor.boot": MODEL | {"atoll.isolation.gvisor", "atoll.isolation.linux", "atoll.guest"},
    "atoll.images": MODEL | {"atoll.images"},
    # Served from inside the volume: of the guest's it shares what a download and an upload are.
    "atoll.volumes": MODEL
    | {
        "atoll.volumes",
        "atoll.http1",
        "atoll.packets",
        "atoll.guest.files",
        "atoll.isolation.base",
        "atoll.isolation.linux",
        "atoll.isolation.namespaces",
    },
    "atoll.egress": MODEL | {"atoll.egress", "atoll.tls", "atoll.isolation.base"},
    "atoll.objects": {"atoll.objects", "atoll.model.errors"},
    "atoll.node": MODEL
    | {
        "atoll.node",
        "atoll.images",
        "atoll.isolation.base",
        "atoll.isolation.directory",
        "atoll.isolation.registry",
        "atoll.isolation.guest_client",
    },
    "atoll.control": MODEL | {"atoll.wire.rest", "atoll.control"},
    "atoll.console": MODEL | {"atoll.console", "atoll.control", "atoll.wire.rest"},
    "atoll.edge": MODEL | {"atoll.edge"},
    "atoll.cluster": MODEL | {"atoll.cluster", "atoll.tls"},
    "atoll.runtime": MODEL | {"atoll.runtime"},
    "atoll.agent": MODEL | {"atoll.runtime", "atoll.agent"},
    "atoll.stress": MODEL | {"atoll.runtime", "atoll.stress"},
    # A distribution of its own: it starts a platform as a process, and the product finds it by entry point.
    "atoll_attacks": MODEL | {"atoll_attacks", "atoll.tls", "atoll.runtime"},
}
"""Package → what of ours it may import. `atoll` itself (its version) is open to all."""

CLI_MAY_NOT = {"atoll.testing", "atoll.isolation.namespaces"}
GUEST_PACKAGES = {"httptools"}


def imports(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of every import in the file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in MODULES else base


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def allowed_for(module: str) -> set[str] | None:
    """What `module` may import of ours; None: no rule of its own (cli, testing)."""
    for package, allowed in RULES.items():
        if within(module, {package}):
            return allowed
    parts = module.split(".")
    if parts[:2] == ["atoll", "isolation"] and len(parts) > 2:  # a backend
        shared = {"atoll.isolation.base", "atoll.isolation.directory", "atoll.isolation.linux", "atoll.packets"}
        return MODEL | shared | {".".join(parts[:3])}
    return None


def under(*packages: str) -> list[str]:
    return [name for name in MODULES if within(name, set(packages))]


def test_modules_import_only_what_their_layer_may() -> None:
    wrong = []
    for module, path in MODULES.items():
        allowed = allowed_for(module)
        for line, name in imports(path, module):
            if not within(name, {"atoll", "atoll_attacks"}) or name == "atoll":
                continue
            if allowed is None:
                bad = within(name, {"atoll_attacks"}) or (within(module, {"atoll.cli"}) and within(name, CLI_MAY_NOT))
            else:
                bad = not within(name, allowed)
            if bad:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_product_never_imports_its_test_kit() -> None:
    wrong = [
        (module, name)
        for module in set(MODULES) - set(under("atoll.testing"))
        for _, name in imports(MODULES[module], module)
        if within(name, {"atoll.testing"})
    ]
    assert not wrong


def test_what_runs_inside_needs_only_the_standard_library_and_httptools() -> None:
    known = set(sys.stdlib_module_names) | GUEST_PACKAGES | {"atoll"}
    wrong = []
    for module in under("atoll.guest", "atoll.http1", "atoll.wire.envd"):
        foreign = {name.split(".")[0] for _, name in imports(MODULES[module], module)} - known
        wrong += [(module, name) for name in foreign]
    assert not wrong


def test_the_table_covers_every_package() -> None:
    packages = {name for name in MODULES if name.count(".") == 1}
    free = {"atoll.__main__", "atoll.cli", "atoll.server", "atoll.testing", "atoll.isolation"}
    assert {name for name in packages - free if allowed_for(name) is None} == set()


def test_a_forbidden_import_would_be_noticed() -> None:
    assert allowed_for("atoll.edge.proxy") is not None
    assert not within("atoll.control.app", allowed_for("atoll.edge.proxy") or set())
    assert not within("atoll.isolation.namespaces.backend", allowed_for("atoll.node.driver") or set())
    assert within("atoll.isolation.linux.sys.caps", allowed_for("atoll.isolation.namespaces.child") or set())
