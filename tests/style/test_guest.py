"""What the guest's code keeps to beyond the rest: one tree of errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

GUEST = Path(__file__).parents[2] / "src" / "atoll" / "guest"

IN_THE_KERNEL = {"kernel_startup.py"}
"""A program of the kernel's process, which knows nothing of ours."""


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
