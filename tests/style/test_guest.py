"""What the guest's code keeps to beyond the rest: one tree of errors, and no state in modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

GUEST = Path(__file__).parents[2] / "src" / "atoll" / "guest"

IN_THE_KERNEL = {"kernel_startup.py", "kernel_forkserver.py"}
"""Programs of the kernels' processes, which know nothing of ours."""


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(GUEST.rglob("*.py")):
        if path.name not in IN_THE_KERNEL:
            yield str(path.relative_to(GUEST)), ast.parse(path.read_text())


def _classes() -> dict[str, tuple[str, list[str]]]:
    """Class → where it is, and the names of its bases."""
    found = {}
    for place, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name] = place, [base.id for base in node.bases if isinstance(base, ast.Name)]
    return found


def _ancestors(name: str, classes: dict[str, tuple[str, list[str]]]) -> set[str]:
    bases = set(classes[name][1]) if name in classes else set()
    return bases | {more for base in bases for more in _ancestors(base, classes)}


def _is_error(name: str) -> bool:
    return name.endswith(("Error", "Exception"))


def test_every_error_of_the_guest_is_of_its_one_tree() -> None:
    classes = _classes()
    errors = {name for name in classes if any(map(_is_error, _ancestors(name, classes)))} - {"GuestError"}
    assert len(errors) >= 10, "the tree is looked at"
    strays = [f"{classes[name][0]}: {name}" for name in sorted(errors) if "GuestError" not in _ancestors(name, classes)]
    assert not strays


_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*")
_TYPE = re.compile(r"_?[A-Z][A-Za-z0-9]*")
_FUNCTIONS_OF_C = frozenset({"_libc", "_syscall", "_statfs", "_renameat2", "_init", "_add", "_remove"})
_EMPTY = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def _state_of(tree: ast.Module) -> list[str]:
    """What a module keeps from one call to the next: whatever is rebound, has a variable's name, or begins empty."""
    found = [f"global {', '.join(node.names)}" for node in ast.walk(tree) if isinstance(node, ast.Global)]
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for target in targets:
            if not isinstance(target, ast.Name) or target.id in _FUNCTIONS_OF_C:
                continue
            value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
            begins_empty = (
                isinstance(value, _EMPTY) and not getattr(value, "elts", None) and not getattr(value, "keys", None)
            )
            if begins_empty and not isinstance(value, ast.ListComp | ast.DictComp | ast.SetComp):
                found.append(f"{target.id} begins empty")
            elif not (_CONSTANT.fullmatch(target.id) or _TYPE.fullmatch(target.id) or target.id.startswith("__")):
                found.append(f"{target.id} is a variable")
    return found


def test_modules_of_the_guest_keep_nothing() -> None:
    """A guest is a fork of a zygote that has run them; what one has belongs to its own `TierParts` and `GuestState`."""
    kept = [f"{place}: {what}" for place, tree in _modules() for what in _state_of(tree)]
    assert not kept


def test_state_in_a_module_is_seen() -> None:
    for source in ("_kept = Kept()", "_all: list[int] = []", "ALL = {}", "def f() -> None:\n    global _x\n    _x = 1"):
        assert _state_of(ast.parse(source)), source
    for source in ("A = 1", "_B = {1: 2}", "Kind = int | str", "_libc = ctypes.CDLL(None)"):
        assert not _state_of(ast.parse(source)), source
