"""Habits that a tool can check: docstrings, exports, documented settings, precise names."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from atoll.config import Settings

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
SOURCES = (SOURCE, ROOT / "attacks" / "src")
FILES = sorted(path for source in SOURCES for path in source.rglob("*.py"))
PACKAGES = sorted(
    ".".join(path.parent.relative_to(source).parts)
    for source in SOURCES
    for path in source.rglob("__init__.py")
    if path.read_text()
)

VAGUE_NAME = re.compile(r"(Manager|Helper|Helpers|Util|Utils)$")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


def test_a_module_says_first_what_it_is() -> None:
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    assert not [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)]


def test_names_are_precise() -> None:
    classes = [
        (path, node.name)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert not [found for found in classes if VAGUE_NAME.search(found[1])]
    assert not [path for path in FILES if path.stem in {"utils", "util", "helpers", "helper", "common_utils"}]


def test_nothing_is_left_for_later() -> None:
    assert not [path for path in FILES if UNFINISHED.search(path.read_text())]


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_package_exports_exists_and_is_listed_once(name: str) -> None:
    package = importlib.import_module(name)
    exported = getattr(package, "__all__", [])
    assert len(exported) == len(set(exported))
    assert not [each for each in exported if not hasattr(package, each)]


def test_every_setting_is_documented() -> None:
    tree = ast.parse((SOURCE / "atoll" / "config.py").read_text())
    settings = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    fields = [node for node in settings.body if isinstance(node, ast.AnnAssign)]
    assert len(fields) == len(Settings.__dataclass_fields__)
    for position, node in enumerate(settings.body):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        after = settings.body[position + 1] if position + 1 < len(settings.body) else None
        told = (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        )
        variable = f"ATOLL_{node.target.id.upper()}"
        assert told or re.search(rf"\b{variable}\b", Settings.__doc__ or ""), f"{variable} is not documented"


def test_every_variable_that_is_read_is_documented() -> None:
    read = set(re.findall(r'"(ATOLL_[A-Z_]+)"', (SOURCE / "atoll" / "config.py").read_text()))
    assert read
    assert not [name for name in read if name not in (Settings.__doc__ or "")]


def test_no_secret_shows_in_the_settings_repr() -> None:
    shown = repr(Settings.from_environ({"ATOLL_API_KEYS": "k3y-one", "ATOLL_DATABASE_URL": "postgresql://u:pw@h/d"}))
    assert "k3y-one" not in shown
    assert "pw" not in shown


def test_every_test_module_has_a_name_of_its_own() -> None:
    """pytest imports test modules by their bare names: two alike stop the collection of a complete run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


UNOWNED = {"create_task", "ensure_future"}
IN_THE_SANDBOX = "runtime/browser/driver/browser.py"
"""It runs alone in a sandbox, without the rest of the product."""


def _receiver(call: ast.Call) -> str:
    return ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""


def test_every_task_has_an_owner() -> None:
    """A task that nobody holds may vanish half-way, and its failure with it: `model/tasks.py`, or a TaskGroup."""
    wrong = []
    for path in FILES:
        if path.parts[-2:] == ("model", "tasks.py") or path.as_posix().endswith(IN_THE_SANDBOX):
            continue
        where = path.relative_to(ROOT)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                name = getattr(node.value.func, "attr", "")
                if name in UNOWNED and ("asyncio" in _receiver(node.value) or "loop" in _receiver(node.value)):
                    wrong.append(f"{where}:{node.lineno} starts a task and drops it")
            called = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_done_callback"
            if called and ".discard" in ast.unparse(node):
                wrong.append(f"{where}:{node.lineno} keeps a set of tasks of its own")
    assert not wrong, "\n".join(wrong)
