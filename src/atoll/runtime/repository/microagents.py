"""Micro-agents: instructions in Markdown that a repository keeps for its agents, read from a directory tree.

Owns the files' format: an optional head of `key: value` lines between `---`, then text. Which kind one is follows from
its head: inputs make a task, triggers make knowledge, neither makes instructions that always apply. The head is YAML,
all of it text but booleans and null; no tags, no anchors, and of a size that an author would write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

import yaml

MAX_HEAD = 16 * 1024
"""Characters in a head."""
MAX_BRACKETS = 64
"""Opening ones: the parser looks at each open one again for every token."""
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
    found = _HEAD.match(text[:MAX_HEAD])
    if found is None:
        if text.startswith("---\n") and "\n---\n" in text[MAX_HEAD:]:
            raise MicroagentError(f"{path}: its head is longer than {MAX_HEAD} characters")
        return {}, text.strip()
    return parse_head(found[1], path), text[found.end() :].strip()


class _HeadLoader(yaml.BaseLoader):  # type: ignore[misc]  # published without type information
    """Scalars stay text; an alias, which can stand for any amount of it, is refused."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias is not taken here", problem_mark=mark)
        found: yaml.Node | None = super().compose_node(parent, index)
        return found

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = super().construct_scalar(node)
        if node.style is not None:
            return text
        return _WORDS.get(text.lower(), text)


_WORDS = {"true": True, "false": False, "": None, "null": None, "~": None}


def parse_head(text: str, path: str = "the file") -> dict[str, Any]:
    """A mapping of text, lists and mappings. Raises MicroagentError."""
    if len(text) > MAX_HEAD:
        raise MicroagentError(f"{path}: its head is longer than {MAX_HEAD} characters")
    if text.count("[") + text.count("{") > MAX_BRACKETS:
        raise MicroagentError(f"{path}: its head has more than {MAX_BRACKETS} brackets")
    try:
        head = yaml.load(text, _HeadLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise MicroagentError(f"{path}: line {line} of its head cannot be read: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise MicroagentError(f"{path}: its head cannot be read, from line 1 on: {type(error).__name__}") from error
    if head is None:
        return {}
    if not isinstance(head, dict):
        raise MicroagentError(f"{path}: line 1 of its head is not `key: value`")
    return {str(key): value for key, value in head.items()}


def _list(metadata: Mapping[str, Any], key: str, path: str) -> list[Any]:
    value = metadata.get(key)
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise MicroagentError(f"{path}: `{key}` is a list")
    return list(value)
