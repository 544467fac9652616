"""An accessibility tree as the text that BrowserGym makes of it and that agents know. Pure.

[12] button 'Save', clickable
    StaticText 'Save'          left out: its parent says so already
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_IGNORED_ROLES = frozenset({"LineBreak", "InlineTextBox"})
_IGNORED = frozenset({"editable", "readonly", "level", "settable", "multiline", "invalid", "focusable"})
_FLAGS = frozenset({"required", "focused", "atomic"})
VISIBLE = 0.5
"""Share of an element that has to be in view for it to count as visible."""


def tree_text(tree: Mapping[str, Any], properties: Mapping[str, Any], *, visible_only: bool = False) -> str:
    """One line a node, a tab a level; nodes without a name of their own are passed over, not their children."""
    nodes = {node["nodeId"]: node for node in tree.get("nodes", ())}
    if not nodes:
        return ""
    lines: list[str] = []
    # A page decides how deep its tree is: no recursion.
    stack: list[tuple[Mapping[str, Any], int, bool, str]] = [(tree["nodes"][0], 0, False, "")]
    seen: set[str] = set()
    while stack:
        node, depth, parent_hidden, parent_name = stack.pop()
        if node["nodeId"] in seen:
            continue
        seen.add(node["nodeId"])
        line, hidden = _line(node, properties, visible_only, parent_hidden, parent_name)
        if line is not None:
            lines.append("\t" * depth + line)
        below = depth if line is None else depth + 1
        name = str(node["name"].get("value", "")) if "name" in node and _role(node) not in _IGNORED_ROLES else ""
        children = [nodes[child] for child in node.get("childIds", ()) if child in nodes]
        stack += [(child, below, hidden, name) for child in reversed(children)]
    return "\n".join(lines)


def _role(node: Mapping[str, Any]) -> str:
    return str(node.get("role", {}).get("value", ""))


def _line(
    node: Mapping[str, Any], properties: Mapping[str, Any], visible_only: bool, parent_hidden: bool, parent_name: str
) -> tuple[str | None, bool]:
    """The node's line or None, and whether it is left out for not being in view."""
    role = _role(node)
    if role in _IGNORED_ROLES or "name" not in node:
        return None, False
    name = str(node["name"].get("value", ""))
    attributes = []
    for item in node.get("properties", ()):
        value = item.get("value", {}).get("value")
        if "value" not in item.get("value", {}) or item["name"] in _IGNORED:
            continue
        if item["name"] in _FLAGS:
            attributes += [item["name"]] if value else []
        else:
            attributes.append(f"{item['name']}={value!r}")
    bid = node.get("browsergym_id")
    hidden = False
    if role == "StaticText":
        if parent_hidden or name in parent_name:
            return None, False
    elif bid is not None and bid in properties:
        facts = properties[bid]
        hidden = visible_only and facts["visibility"] < VISIBLE
        if facts["clickable"]:
            attributes.insert(0, "clickable")
    if hidden:
        return None, True
    text = role if role == "generic" and not name else f"{role} {name.strip()!r}"
    if bid is not None:
        text = f"[{bid}] {text}"
    value = node.get("value", {})
    if value.get("value") is not None:
        text += f" value={value['value']!r}"
    return ", ".join([text, *attributes]), False
