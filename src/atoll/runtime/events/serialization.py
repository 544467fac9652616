"""OpenHands' JSON of events, in and out, with the forms of older versions on the way in.

    {"id": 7, "source": "agent", "action": "run", "args": {"command": "ls", …}, "timeout": 120}
    {"id": 8, "cause": 7, "observation": "run", "content": "…", "extras": {"command": "ls", "metadata": {…}}}

Input is a foreign protocol: fields that nobody knows are dropped, unknown events are kept as UnknownAction or
UnknownObservation. Nothing that was recorded is ever executed to be understood: an old edit that is spelled as
Python source is parsed with `ast.literal_eval`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, fields
from enum import Enum
from typing import Any, TypeVar

from atoll.runtime.errors import MalformedEvent
from atoll.runtime.events.actions import ACTIONS, FileEditAction, UnknownAction
from atoll.runtime.events.base import (
    Action,
    ActionConfirmationStatus,
    ActionSecurityRisk,
    Event,
    EventSource,
    FileEditSource,
    FileReadSource,
    Observation,
    RecallType,
)
from atoll.runtime.events.observations import OBSERVATIONS, CmdOutputMetadata, UnknownObservation

_HEAD = tuple(f.name for f in fields(Event))
_RENAMED_ARGS = {"is_confirmed": "confirmation_state", "images_urls": "image_urls"}
_ENUMS: Mapping[str, type[Enum]] = {
    "confirmation_state": ActionConfirmationStatus,
    "security_risk": ActionSecurityRisk,
    "recall_type": RecallType,
}
_OLD_EDIT_PREFIX, _OLD_EDIT_SUFFIX = "print(file_editor(**", "))"
T = TypeVar("T", bound=Event)
_MAX_OLD_EDIT = 16 * 1024 * 1024


def event_from_dict(data: Mapping[str, Any]) -> Event:
    """The event that `data` (one parsed JSON object) describes. Raises MalformedEvent."""
    if not isinstance(data, Mapping):
        raise MalformedEvent(f"an event is a JSON object, not {type(data).__name__}")
    if "action" in data:
        return action_from_dict(data)
    if "observation" in data:
        return observation_from_dict(data)
    raise MalformedEvent("an event has an `action` or an `observation`; this one has neither")


def action_from_dict(data: Mapping[str, Any]) -> Action:
    """Raises MalformedEvent."""
    name = data.get("action")
    if not isinstance(name, str):
        raise MalformedEvent(f"`action` is a name, not {name!r}")
    args = _object(data, "args")
    head = _head(data)
    cls = ACTIONS.get(name)
    if cls is None:
        return UnknownAction(name=name, args=args, **head)
    for old, new in _RENAMED_ARGS.items():
        if args.get(old) is not None:
            args.setdefault(new, args[old])
    args = _with_old_edit(cls, args)
    if head.get("timestamp") is None and isinstance(args.get("timestamp"), str):
        head["timestamp"] = args["timestamp"]
    _choose_source(cls, args)
    return _build(cls, f"action {name!r}", args, head)


def observation_from_dict(data: Mapping[str, Any]) -> Observation:
    """Raises MalformedEvent."""
    name = data.get("observation")
    if not isinstance(name, str):
        raise MalformedEvent(f"`observation` is a name, not {name!r}")
    extras = _object(data, "extras")
    content = data.get("content")
    content = "" if content is None else content if isinstance(content, str) else str(content)
    head = _head(data)
    cls = OBSERVATIONS.get(name)
    if cls is None:
        return UnknownObservation(content=content, name=name, extras=extras, **head)
    if name == "run":
        extras["metadata"] = _metadata(extras)
    _choose_source(cls, extras)
    return _build(cls, f"observation {name!r}", {**extras, "content": content}, head)


def event_to_dict(event: Event) -> dict[str, Any]:
    """OpenHands' form of an event: JSON-able, without the head fields that are unset."""
    head: dict[str, Any] = {name: _plain(getattr(event, name)) for name in _HEAD if getattr(event, name) is not None}
    if head.get("id") == -1:
        del head["id"]
    timeout = head.pop("timeout", None)
    body = {f.name: _plain(getattr(event, f.name)) for f in fields(event) if f.name not in _HEAD}
    if isinstance(event, Action):
        args = dict(event.args) if isinstance(event, UnknownAction) else body
        made = {**head, "message": event.message, "action": event.action, "args": args}
        return made if timeout is None else {**made, "timeout": timeout}
    if isinstance(event, Observation):
        content = body.pop("content")
        extras = dict(event.extras) if isinstance(event, UnknownObservation) else body
        made = {**head, "message": event.message, "observation": event.observation, "content": content}
        made["extras"] = extras
        if hasattr(event, "success"):
            made["success"] = event.success
        return made
    raise MalformedEvent(f"{type(event).__name__} is neither an action nor an observation")


def parse_old_edit(source: str) -> dict[str, Any]:
    """The keyword arguments in `print(file_editor(**{…}))`, read as data. {} for anything else.

    Older versions recorded an edit as the Python line that would carry it out.
    """
    text = source.strip()
    if not (text.startswith(_OLD_EDIT_PREFIX) and text.endswith(_OLD_EDIT_SUFFIX)) or len(text) > _MAX_OLD_EDIT:
        return {}
    try:
        value = ast.literal_eval(text[len(_OLD_EDIT_PREFIX) : -len(_OLD_EDIT_SUFFIX)])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {}
    return value if isinstance(value, dict) and all(isinstance(key, str) for key in value) else {}


def _with_old_edit(cls: type[Action], args: dict[str, Any]) -> dict[str, Any]:
    source = args.pop("translated_ipython_code", None)
    if not isinstance(source, str) or not source:
        return args
    found = parse_old_edit(source)
    if cls is not FileEditAction:
        found.pop("command", None)  # a `view`, which became a read action that has no command
    return {**args, **{key: value for key, value in found.items() if value is not None}}


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MalformedEvent(f"`{key}` is a JSON object, not {type(value).__name__}")
    return dict(value)


def _head(data: Mapping[str, Any]) -> dict[str, Any]:
    head = {name: data[name] for name in _HEAD if data.get(name) is not None}
    if "source" in head:
        head["source"] = _enum(EventSource, head["source"], None)
    for name in ("id", "cause"):
        if name in head and not isinstance(head[name], int):
            raise MalformedEvent(f"`{name}` is a number, not {head[name]!r}")
    if "timeout" in head and not isinstance(head["timeout"], (int, float)):
        raise MalformedEvent(f"`timeout` is a number of seconds, not {head['timeout']!r}")
    return head


def _metadata(extras: dict[str, Any]) -> CmdOutputMetadata:
    given = extras.get("metadata")
    known = {f.name for f in fields(CmdOutputMetadata)}
    values = {key: value for key, value in given.items() if key in known} if isinstance(given, Mapping) else {}
    # Before 0.20 the exit code and the process id stood beside the metadata.
    for old, new in (("exit_code", "exit_code"), ("command_id", "pid")):
        if old in extras:
            values[new] = extras[old]
    for name in ("exit_code", "pid"):
        if name in values and not isinstance(values[name], int):
            values[name] = -1
    return CmdOutputMetadata(**values)


def _choose_source(cls: type[Event], values: dict[str, Any]) -> None:
    if "impl_source" in values:
        kind: type[Enum] = FileReadSource if cls.__name__.startswith("FileRead") else FileEditSource
        found = _enum(kind, values["impl_source"], None)
        if found is None:
            del values["impl_source"]
        else:
            values["impl_source"] = found


def _build(cls: type[T], what: str, values: Mapping[str, Any], head: Mapping[str, Any]) -> T:
    known: dict[str, Field[Any]] = {f.name: f for f in fields(cls) if f.name not in _HEAD}
    chosen = {key: value for key, value in values.items() if key in known}
    for name, kind in _ENUMS.items():
        if name in chosen:
            found = _enum(kind, chosen.pop(name), None)
            if found is not None:
                chosen[name] = found
    missing = [
        name
        for name, f in known.items()
        if name not in chosen and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise MalformedEvent(f"{what} lacks {', '.join(f'`{name}`' for name in missing)}")
    for name, f in known.items():
        if f.type == "str" and name in chosen and not isinstance(chosen[name], str):
            chosen[name] = "" if chosen[name] is None else str(chosen[name])
    return cls(**chosen, **head)


def _enum(kind: type[Enum], value: object, otherwise: Enum | None) -> Enum | None:
    try:
        return kind(value)
    except (ValueError, KeyError):
        return otherwise


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, CmdOutputMetadata):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
