"""The product speaks in the field's words: none of the private metaphors that it once used, in names or in prose."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "atoll"

REFUSED = {
    "told": "reported, sent, shown, logged",
    "tell": "report, send, show",
    "tells": "reports, sends, shows",
    "untold": "unreported",
    "said": "reported, printed, configured",
    "heard": "received",
    "hear": "receive, listen for",
    "hears": "receives, listens for",
    "ear": "listener, descriptor",
    "ears": "listeners, descriptors",
    "whoever": "the caller, the owner, the process that …",
    "courier": "dispatcher",
    "holdings": "quota",
    "ground": "forbidden networks",
    "heart": "init process",
    "birth": "fork, create",
    "newborn": "new",
}
"""Word → what to write instead."""

PHRASES = {"for want of": "because … ran out", "last words": "the end of its log", "no ear for": "not listening"}

_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_WORD = re.compile(r"[A-Za-z]+")


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Names that the module itself gives; those of libraries (`file.tell`) are theirs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def _prose(source: str) -> Iterator[tuple[int, str]]:
    """Comments, and strings that stand alone: docstrings."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for offset, line in enumerate(node.value.value.split("\n")):
                yield node.lineno + offset, line


def faults(source: str) -> list[str]:
    """`line: word` for each that is refused."""
    found = [(line, part.lower()) for line, name in _names(ast.parse(source)) for part in _PART.findall(name)]
    prose = list(_prose(source))
    found += [(line, word.lower()) for line, text in prose for word in _WORD.findall(text)]
    wrong = [f"{line}: {word!r} (write: {REFUSED[word]})" for line, word in found if word in REFUSED]
    return wrong + [
        f"{line}: {phrase!r} (write: {better})"
        for line, text in prose
        for phrase, better in PHRASES.items()
        if phrase in text
    ]


def test_names_and_prose_use_the_fields_words() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)}:{fault}"
        for path in sorted(SOURCE.rglob("*.py"))
        for fault in faults(path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "told = 1",
        "def _tell_all(): ...",
        "self.untold = []",
        "class Courier: ...",
        '"""What it said."""',
        "x = 1  # heard",
    ],
)
def test_a_refused_word_is_seen(source: str) -> None:
    assert faults(source)


@pytest.mark.parametrize("source", ["at = file.tell()", 'text = "told"', "early = 1", "hearty = 1"])
def test_what_is_allowed_passes(source: str) -> None:
    assert not faults(source)
