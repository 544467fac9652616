"""Micro-agents: instructions in Markdown that a repository keeps for its agents, read from a directory tree.

Owns the files' format: an optional head of `key: value` lines between `---`, then text. Which kind one is follows from
its head: inputs make a task, triggers make knowledge, neither makes instructions that always apply. The head is read as
the small part of YAML that these files use, so that no YAML library is needed; what it cannot read is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

MAX_FILE_BYTES = 1024 * 1024
MAX_FILES = 500
LEGACY = ".openhands_instructions"
SPECIAL = {".cursorrules": "cursorrules", "agents.md": "agents", "agent.md": "agents"}
"""Other programs' instruction files, by lower-case name, and what they are called here."""

ASK = (
    "\n\nIf the user didn't provide any of these variables, ask the user to provide them first before the agent can "
    "proceed with the task."
)
_VARIABLE = re.compile(r"\$\{([a-zA-Z_]\w*)\}")
_HEAD = re.compile(r"\A---[ \t]*\n(.*?)(?:\n)?^---[ \t]*(?:\n|\Z)", re.S | re.M)


class MicroagentType(StrEnum):
    """When one applies: at its triggers, always, or when it is called with inputs."""

    KNOWLEDGE = "knowledge"
    REPO_KNOWLEDGE = "repo"
    TASK = "task"


class MicroagentError(ValueError):
    """A file is not a micro-agent; the message names the file and the line."""


@dataclass(frozen=True)
class Microagent:
    """One file. `metadata` is its head as it was given."""

    name: str
    content: str
    source: str
    type: MicroagentType
    triggers: Sequence[str] = ()
    inputs: Sequence[Mapping[str, Any]] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def match_trigger(self, message: str) -> str | None:
        """The first trigger that is in the message, in any case of letters."""
        lower = message.lower()
        return next((trigger for trigger in self.triggers if trigger.lower() in lower), None)


def load(text: str, path: str, name: str | None = None) -> Microagent:
    """The micro-agent in `text`. `name` is what it is called when it stands in a directory. Raises MicroagentError."""
    file = PurePosixPath(path).name
    fixed = "repo_legacy" if file == LEGACY else SPECIAL.get(file.lower())
    if fixed is not None:
        return Microagent(fixed, text, path, MicroagentType.REPO_KNOWLEDGE, metadata={"name": fixed})
    metadata, content = split_head(text, path)
    title = name or str(metadata.get("name", "default"))
    triggers = [str(item) for item in _list(metadata, "triggers", path)]
    inputs = [item if isinstance(item, Mapping) else {"name": item} for item in _list(metadata, "inputs", path)]
    kind = MicroagentType.KNOWLEDGE if triggers else MicroagentType.REPO_KNOWLEDGE
    if inputs:
        kind = MicroagentType.TASK
        call = f"/{metadata.get('name', title)}"
        triggers += [call] if call not in triggers else []
        content += ASK
    return Microagent(title, content, path, kind, tuple(triggers), tuple(inputs), metadata)


def load_all(files: Iterable[tuple[str, str]]) -> tuple[list[Microagent], list[str]]:
    """(micro-agents of `(path below their directory, text)`, what could not be read and why)."""
    found, problems = [], []
    for path, text in files:
        try:
            found.append(load(text, path, str(PurePosixPath(path).with_suffix(""))))
        except MicroagentError as error:
            problems.append(str(error))
    return found, problems


def variables(content: str) -> list[str]:
    """Names in `${name}`."""
    return _VARIABLE.findall(content)


def split_head(text: str, path: str = "the file") -> tuple[dict[str, Any], str]:
    """(head, text after it). Raises MicroagentError."""
    found = _HEAD.match(text)
    if found is None:
        return {}, text.strip()
    return parse_head(found[1], path), text[found.end() :].strip()


def parse_head(text: str, path: str = "the file") -> dict[str, Any]:
    """Keys with scalars, lists of scalars, and lists of mappings of scalars. Raises MicroagentError."""
    head: dict[str, Any] = {}
    key = ""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        indented, item = line[:1] in (" ", "\t", "-"), line.strip()
        if not indented:
            key, colon, value = item.partition(":")
            key = key.strip()
            if not colon or not key or (value and not value[0].isspace()):
                raise MicroagentError(f"{path}: line {number} of its head is not `key: value`: {line!r}")
            head[key] = _value(value.strip())
            continue
        if head.get(key) is None and key:
            head[key] = []
        items = head.get(key)
        if not isinstance(items, list):
            raise MicroagentError(f"{path}: line {number} of its head belongs to no list: {line!r}")
        _add(items, item, path, number)
    return head


def _add(items: list[Any], item: str, path: str, number: int) -> None:
    body = item[1:].strip() if item == "-" or item.startswith("- ") else None
    pair = re.fullmatch(r"([\w-]+):(?:\s++(.*))?", item if body is None else body)
    if body is not None:
        items.append({pair[1]: _value(pair[2] or "")} if pair is not None else _value(body))
    elif pair is not None and items and isinstance(items[-1], dict):
        items[-1][pair[1]] = _value(pair[2] or "")
    else:
        raise MicroagentError(f"{path}: line {number} of its head cannot be read: {item!r}")


def _value(text: str) -> Any:
    if text[:1] in ('"', "'") and text[-1:] == text[:1] and len(text) > 1:
        return text[1:-1]
    text = _without_comment(text)
    if text.startswith("[") and text.endswith("]"):
        return [_value(item.strip()) for item in text[1:-1].split(",") if item.strip()]
    if text.lower() in ("", "null", "~"):
        return None
    return {"true": True, "false": False}.get(text.lower(), text)


def _without_comment(text: str) -> str:
    """What stands before a `#` that a blank precedes."""
    at = text.find("#")
    while at >= 0:
        if text[at - 1 : at].isspace():
            return text[:at].rstrip()
        at = text.find("#", at + 1)
    return text


def _list(metadata: Mapping[str, Any], key: str, path: str) -> list[Any]:
    value = metadata.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise MicroagentError(f"{path}: `{key}` is a list")
    return list(value)
