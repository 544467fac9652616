"""No regular expression of the product matches in more than linear time: one would stop the loop that all wait for."""

from __future__ import annotations

import ast
import builtins
import importlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.patterns import METHODS, WHOLE, problems

SOURCE = Path(__file__).parents[2] / "src" / "atoll"

LINEAR = {
    (
        "guest/files/multipart.py",
        ";",
    ): "a quote behind `=` is never escaped: only the last parameter can be without an end"
}
"""(module, what the pattern begins with) → why it is linear although the check cannot see it."""


class Uses(ast.NodeVisitor):
    """The patterns of a module, and the methods by which each is used."""

    def __init__(self) -> None:
        self.compiled: dict[str, tuple[int, ast.expr, ast.expr | None]] = {}
        self.methods: dict[str, set[str]] = defaultdict(set)
        self.inline: list[tuple[int, ast.expr, ast.expr | None, str]] = []

    def visit_Assign(self, node: ast.Assign) -> None:
        if (call := _call_of_re(node.value)) is not None and call[0] == "compile":
            for target in node.targets:
                self.compiled[_name(target)] = (node.lineno, call[1], call[2])
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        call = _call_of_re(node)
        if call is not None and call[0] in METHODS:
            self.inline.append((node.lineno, call[1], call[2], call[0]))
        elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            self.methods[_name(node.func.value)].add(node.func.attr)
        self.generic_visit(node)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _call_of_re(node: ast.expr) -> tuple[str, ast.expr, ast.expr | None] | None:
    """(function, pattern, flags) of `re.function(pattern, …)`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
        return None
    if not isinstance(node.func.value, ast.Name) or node.func.value.id != "re":
        return None
    at = {"sub": 4, "subn": 4, "split": 3}.get(node.func.attr, 1 if node.func.attr == "compile" else 2)
    named = {keyword.arg: keyword.value for keyword in node.keywords}
    return node.func.attr, node.args[0], named.get("flags", node.args[at] if len(node.args) > at else None)


def patterns(path: Path) -> Iterator[tuple[int, str | bytes, int, set[str]]]:
    """(line, pattern, flags, methods) of each one that can be read off the source."""
    uses = Uses()
    uses.visit(ast.parse(path.read_text()))
    where = "atoll." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for name, (line, pattern, flags) in uses.compiled.items():
        yield line, *_value(pattern, flags, where), uses.methods.get(name) or {WHOLE, "search"}
    for line, pattern, flags, method in uses.inline:
        if not (isinstance(pattern, ast.Call) and _name(pattern.func) == "escape"):
            yield line, *_value(pattern, flags, where), {method}


class _Scope(dict[str, Any]):
    """A module's names; one that is only known when it runs stands for plain text."""

    def __init__(self, names: dict[str, Any], text: str | bytes) -> None:
        super().__init__(names)
        self._text = text

    def __missing__(self, name: str) -> str | bytes:
        if hasattr(builtins, name):
            raise KeyError(name)
        return self._text


def _value(pattern: ast.expr, flags: ast.expr | None, module: str) -> tuple[str | bytes, int]:
    """Both, as the module itself would work them out."""
    binary = any(isinstance(part, ast.Constant) and isinstance(part.value, bytes) for part in ast.walk(pattern))
    scope = _Scope(vars(importlib.import_module(module)), b"x" if binary else "x")
    text, number = (
        eval(compile(ast.Expression(part), module, "eval"), {}, scope) if part is not None else 0
        for part in (pattern, flags)
    )
    return text, int(number)


def test_no_pattern_matches_in_more_than_linear_time() -> None:
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        module = path.relative_to(SOURCE).as_posix()
        for line, pattern, flags, methods in patterns(path):
            if (module, pattern[:1]) in LINEAR:
                continue
            wrong += [f"{module}:{line} {fault}: {pattern!r}" for fault in problems(pattern, flags, methods)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"(?im)^host[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?$", "findall"),
        (r"([a-z]+):[ \t]*([\t\x20-\x7e]*?)[ \t]*", WHOLE),
        (r"\s+#.*$", "sub"),
        (r"\r+\n", "sub"),
        (r"<title[^>]*>", "search"),
        (r"(?:a+)*b", "match"),
        (r"(?:ab|a.)*1", "match"),
        (r"(?:a|bc|[a-z]d)*1", "match"),
        (r"\d+\.?\d*x", "match"),
        (r".*x.*y", "match"),
    ],
)
def test_what_is_super_linear_is_seen(pattern: str, method: str) -> None:
    assert problems(pattern, 0, {method})


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (r"[a-z]+[ \t]*:[ \t]*x", WHOLE),
        (r"(?<!\s)\s++#.*", "sub"),
        (r"\r++\n", WHOLE),
        (r"\s+", "sub"),
        (r'"(?:[^"\\]|\\.)*"', "match"),
        (r"(?m)^[ \t]*x", "search"),
        (r"[a-z]{0,20}[a-z]{0,20}x", "match"),
        (r"a.*b.*", "match"),
    ],
)
def test_what_is_linear_is_let_pass(pattern: str, method: str) -> None:
    assert not problems(pattern, 0, {method})
