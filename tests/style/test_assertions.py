"""Every test says what must be so: it asserts, expects an error, or calls what does so in the tests' own code."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CONTRACTS = TESTS.parent / "src" / "atoll" / "testing"
OF_PYTEST = {"raises", "fail"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def functions(tree: ast.Module) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


@cache
def asserts(function: Function) -> bool:
    return any(isinstance(node, ast.Assert) or _raises(node) == "AssertionError" for node in ast.walk(function))


def _raises(node: ast.AST) -> str:
    called = node.exc.func if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else None
    return called.id if isinstance(called, ast.Name) else ""


@cache
def used(function: Function) -> set[str]:
    """Names that it mentions, the last parts of what it calls, and its fixtures."""
    found = {argument.arg for argument in function.args.args}
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found.add(node.func.attr)
    return found


@cache
def imported(tree: ast.Module) -> list[tuple[str, str]]:
    """(last part of the module's name, name) of what is imported from a module."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [((node.module or "").rpartition(".")[2], alias.name) for node in nodes for alias in node.names]


def asserting(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Module → the names in it that stand for something that asserts: its own functions, and what it imports."""
    shared = {one.name for one in functions(trees.get("conftest", ast.Module([], []))) if asserts(one)}
    found = {name: {one.name for one in functions(tree) if asserts(one)} for name, tree in trees.items()}
    grown = True
    while grown:
        grown = False
        for module, tree in trees.items():
            known = found[module] | OF_PYTEST | shared
            more = {one.name for one in functions(tree) if not one.name.startswith("test_") and used(one) & known}
            more |= {name for source, name in imported(tree) if name in found.get(source, ())}
            grown = grown or not more <= found[module]
            found[module] |= more
    return {module: names | OF_PYTEST | shared for module, names in found.items()}


def idle(tree: ast.Module, known: set[str]) -> list[str]:
    """Tests that can fail by accident alone."""
    tests = [one for one in functions(tree) if one.name.startswith("test_")]
    return [one.name for one in tests if not asserts(one) and not used(one) & known]


def test_no_test_asserts_nothing() -> None:
    paths = [path for place in (TESTS, CONTRACTS) for path in place.rglob("*.py")]
    trees = {path.stem: ast.parse(path.read_text()) for path in paths}
    known = asserting(trees)
    wrong = [f"{module}: {name}" for module, tree in trees.items() for name in idle(tree, known[module])]
    assert not wrong, "\n".join(sorted(wrong))


@pytest.mark.parametrize(
    ("body", "is_idle"),
    [
        ("run()", True),
        ("run(); print(1)", True),
        ("assert run()", False),
        ("check()", False),
        ("checks_later()", False),
        ("with pytest.raises(OSError): run()", False),
    ],
)
def test_a_test_without_an_assertion_is_seen(body: str, is_idle: bool) -> None:
    helpers = "def run(): return 1\ndef check(): assert run()\ndef checks_later(): check()\n"
    tree = ast.parse(f"{helpers}def test_x():\n    {body}")
    assert bool(idle(tree, asserting({"m": tree})["m"])) is is_idle
