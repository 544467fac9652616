"""A run as a file: one JSON line that says what it is, then one line for every event, as it happens.

    {"atoll_session": 1, "sid": …, "task": …, "model": …, "template": …}
    {"id": 0, "timestamp": …, "source": "user", "action": "message", …}           OpenHands' JSON
    …

Owns the format, the numbering of events, and reading a session again after any kind of end: a last line that was cut
off is dropped, an action without an observation is logged as interrupted. One process at a time has a session.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from atoll.model.errors import AtollError
from atoll.runtime import event_from_dict, event_to_dict
from atoll.runtime.errors import MalformedEvent
from atoll.runtime.events.actions import AgentFinishAction
from atoll.runtime.events.base import Action, Event, EventSource, Observation
from atoll.runtime.events.observations import ErrorObservation

FORMAT = 1
INTERRUPTED = "The session was interrupted before this action was observed: whether it was carried out is not known."

E = TypeVar("E", bound=Event)


class SessionError(AtollError):
    """A session's file cannot be used."""


@dataclass(frozen=True, slots=True)
class SessionHead:
    """What a session is. `sid` finds its sandbox again."""

    sid: str
    task: str
    model: str
    template: str | None = None


class Session:
    """An open session. Use `create` or `resume`; a context manager."""

    def __init__(
        self, path: Path, fd: int, head: SessionHead, events: list[Event], now: Callable[[], datetime]
    ) -> None:
        self.path = path
        self.head = head
        self.events = events
        self._fd = fd
        self._now = now

    @classmethod
    def create(cls, path: Path, head: SessionHead, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Self:
        """A new file. Raises SessionError if it is there already, OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise SessionError(f"{path} is there already", hint="resume it, or choose another file") from error
        made = cls(path, fd, head, [], now)
        made._lock()
        made._write({"atoll_session": FORMAT, **asdict(head)})
        return made

    @classmethod
    def resume(cls, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Self:
        """An existing file, ready for what comes next. Raises SessionError, OSError."""
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        made = cls(path, fd, SessionHead("", "", ""), [], now)
        try:
            made._lock()
            made._read()
        except BaseException:
            os.close(fd)
            raise
        made._log_interrupted()
        return made

    def add(self, event: E) -> E:
        """Numbers, dates and writes an event; it is on its way to the disk when this returns."""
        chosen = replace(event, id=len(self.events), timestamp=self._now().isoformat())
        self.events.append(chosen)
        self._write(event_to_dict(chosen))
        return chosen

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SessionError(f"{self.path} is in use by another process") from error

    def _write(self, data: dict[str, Any]) -> None:
        line = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    def _read(self) -> None:
        with open(self._fd, "rb", closefd=False) as file:
            data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            os.ftruncate(self._fd, whole)
        lines = data[:whole].splitlines()
        try:
            head = json.loads(lines[0]) if lines else None
            if not isinstance(head, dict) or head.get("atoll_session") != FORMAT:
                raise SessionError(f"{self.path} is not a session of this version")
            names = [name for name in SessionHead.__slots__ if name in head]
            self.head = SessionHead(**{name: head[name] for name in names})
            for number, line in enumerate(lines[1:], 2):
                try:
                    self.events.append(event_from_dict(json.loads(line)))
                except (ValueError, MalformedEvent) as error:
                    raise SessionError(f"{self.path}: line {number} is no event: {error}") from error
        except (ValueError, TypeError) as error:
            raise SessionError(f"{self.path} is not a session: {error}") from error

    def _log_interrupted(self) -> None:
        observed = {event.cause for event in self.events if isinstance(event, Observation)}
        for event in list(self.events):
            if not isinstance(event, Action) or isinstance(event, AgentFinishAction):
                continue
            if event.tool_call_metadata and event.id not in observed:
                self.add(
                    ErrorObservation(
                        INTERRUPTED,
                        cause=event.id,
                        source=EventSource.ENVIRONMENT,
                        tool_call_metadata=event.tool_call_metadata,
                    )
                )
