"""The text of a page from its DOM snapshot, in the Markdown that OpenHands shows for `browse`. Pure.

Links stay, images become their alternative text, no line is wrapped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_HIDDEN = frozenset({"script", "style", "head", "title", "template", "noscript", "meta", "link"})
_BLOCKS = frozenset(
    {
        "p", "div", "section", "article", "main", "header", "footer", "nav", "aside", "form", "fieldset", "figure",
        "ul", "ol", "dl", "table", "blockquote", "address", "details", "body", "h1", "h2", "h3", "h4", "h5", "h6",
        "pre", "hr", "tr", "li", "dt", "dd",
    }
)  # fmt: skip
_EMPHASIS = {"b": "**", "strong": "**", "i": "_", "em": "_", "u": "_", "code": "`", "tt": "`", "del": "~~", "s": "~~"}
_ELEMENT, _TEXT = 1, 3


@dataclass
class _Writer:
    """Text so far. White space between words is one blank, between blocks as many line ends as the widest asks."""

    pieces: list[str] = field(default_factory=list)
    breaks: int = 0
    blank: bool = False
    prefix: str = ""

    def text(self, words: str) -> None:
        if not words.strip():
            self.blank = self.blank or bool(words)
            return
        lead = " " if (self.blank or words[0].isspace()) and not self.breaks else ""
        self._start()
        self.pieces.append(lead + re.sub(r"\s+", " ", words.strip()))
        self.blank = words[-1].isspace()

    def raw(self, text: str) -> None:
        self._start()
        self.pieces.append(text)
        self.blank = False

    def mark(self, text: str, *, opening: bool) -> None:
        """Emphasis and the like: the blank before it stays outside."""
        lead = " " if opening and self.blank and not self.breaks else ""
        if opening:
            self._start()
            self.blank = False
        self.pieces.append(lead + text)

    def gap(self, lines: int) -> None:
        self.breaks = max(self.breaks, lines)
        self.blank = False

    def _start(self) -> None:
        if self.breaks:
            if any(self.pieces):
                self.pieces.append("\n" * self.breaks)
            self.pieces.append(self.prefix)
            self.breaks = 0


def page_text(snapshot: Mapping[str, Any]) -> str:
    """The text of all documents of a snapshot, frames at their place."""
    if not snapshot.get("documents"):
        return ""
    writer = _Writer(breaks=1)
    _Document(snapshot, 0, writer).write()
    return "".join(writer.pieces).strip("\n") + "\n\n"


class _Document:
    """One document of a snapshot. Walks without recursion: a page decides how deep its tree is."""

    def __init__(self, snapshot: Mapping[str, Any], number: int, writer: _Writer) -> None:
        self._snapshot = snapshot
        self._strings: Sequence[str] = snapshot["strings"]
        self._nodes = snapshot["documents"][number]["nodes"]
        self._writer = writer
        self._children: dict[int, list[int]] = {}
        for node, parent in enumerate(self._nodes["parentIndex"]):
            self._children.setdefault(parent, []).append(node)
        content = self._nodes["contentDocumentIndex"]
        self._frames = dict(zip(content["index"], content["value"], strict=True))
        self._lists: list[tuple[str, int]] = []
        self._pre = 0

    def write(self) -> None:
        stack: list[tuple[int, bool]] = [(0, True)]
        while stack:
            node, opening = stack.pop()
            if not opening:
                self._close(node)
                continue
            kind = self._nodes["nodeType"][node]
            if kind == _TEXT:
                text = self._string(self._nodes["nodeValue"][node])
                if self._pre:
                    self._writer.raw(text)
                else:
                    self._writer.text(text)
                continue
            if kind == _ELEMENT:
                if self._name(node) in _HIDDEN:
                    continue
                self._open(node)
                stack.append((node, False))
                if node in self._frames:
                    _Document(self._snapshot, self._frames[node], self._writer).write()
            stack += [(child, True) for child in reversed(self._children.get(node, ()))]

    def _string(self, index: int) -> str:
        return self._strings[index] if index >= 0 else ""

    def _name(self, node: int) -> str:
        return self._string(self._nodes["nodeName"][node]).lower()

    def _attribute(self, node: int, attribute: str) -> str | None:
        found = self._nodes["attributes"][node]
        for at in range(0, len(found), 2):
            if self._string(found[at]) == attribute:
                return self._string(found[at + 1])
        return None

    def _open(self, node: int) -> None:
        name, writer = self._name(node), self._writer
        if name in _BLOCKS:
            writer.gap(1 if name in ("li", "tr", "dt", "dd") else 2)
        if re.fullmatch("h[1-6]", name):
            writer.raw("#" * int(name[1]) + " ")
        elif name in _EMPHASIS and not self._pre:
            writer.mark(_EMPHASIS[name], opening=True)
        elif name == "a" and self._attribute(node, "href"):
            writer.mark("[", opening=True)
        elif name in ("ul", "ol"):
            self._lists.append((name, 0))
        elif name == "li":
            self._item()
        elif name == "br":
            writer.gap(1)
        elif name == "hr":
            writer.raw("* * *")
        elif name == "img" and (shown := self._attribute(node, "alt")):
            writer.text(shown)
        elif name == "pre":
            self._pre += 1
            writer.raw("    ")
        elif name == "blockquote":
            writer.prefix += "> "
        elif name in ("td", "th") and not writer.breaks:
            writer.raw(" | ")

    def _item(self) -> None:
        kind, count = self._lists[-1] if self._lists else ("ul", 0)
        if self._lists:
            self._lists[-1] = (kind, count + 1)
        depth = max(1, len(self._lists))
        self._writer.raw("  " * depth + (f"{count + 1}. " if kind == "ol" else "* "))

    def _close(self, node: int) -> None:
        name, writer = self._name(node), self._writer
        if name in _EMPHASIS and not self._pre:
            writer.mark(_EMPHASIS[name], opening=False)
        elif name == "a" and (target := self._attribute(node, "href")):
            writer.mark(f"]({target})", opening=False)
        elif name in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif name == "pre":
            self._pre -= 1
        elif name == "blockquote":
            writer.prefix = writer.prefix[:-2]
        if name in _BLOCKS:
            writer.gap(1 if name in ("li", "tr", "dt", "dd") else 2)
