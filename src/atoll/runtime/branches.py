"""The tree of a session's checkpoints: each is a snapshot of the sandbox and what had happened by then.

    DIRECTORY/<checkpoint id>.json   {"version", "id", "parent", "snapshot", "keeps", …, "events": [since the parent]}

A run goes on from any of them with another action; what it did before is the way from the root. Owns the files and the
log that becomes them. Taking the snapshot and making a sandbox of it is the runtime's (`runtime.checkpoint`).
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from atoll.model import durable
from atoll.runtime.errors import AgentRuntimeError
from atoll.runtime.events.base import Action, Event, Observation
from atoll.runtime.events.observations import NullObservation
from atoll.runtime.events.serialization import event_from_dict, event_to_dict

VERSION = 1
MEMORY, FILES = "memory", "files"
_ID = re.compile(r"[0-9a-f]{12}")
_MAX_DEPTH = 10_000


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One node of the tree. `keeps`: MEMORY (what runs goes on in a sandbox of it) or FILES.

    `event_count`: events from the root up to it. `template` is what the first sandbox was made of, `cwd` where the
    agent's shell was. `why` says why memory was not kept; "" where it was.
    """

    id: str
    parent: str | None
    sid: str
    snapshot: str
    keeps: str
    template: str
    cwd: str
    created_at: str
    event_count: int
    note: str = ""
    why: str = ""
    jupyter: bool = False


class EventLog:
    """Actions and what came of them since the last checkpoint, on disk: a session may be long. Not for several threads.

    They are numbered anew, so that each observation names its action however often the run has branched.
    """

    def __init__(self, next_id: int = 0) -> None:
        self._file: TextIO | None = None
        self.next_id = next_id
        self.count = 0

    def note(self, action: Action, observation: Observation) -> None:
        """An action was carried out."""
        action = replace(action, id=self.next_id)
        self._write(action)
        if not isinstance(observation, NullObservation):
            self._write(replace(observation, id=self.next_id, cause=action.id))

    def _write(self, event: Event) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed with the log)
        self._file.write(json.dumps(event_to_dict(event)) + "\n")
        self.next_id += 1
        self.count += 1

    def read(self) -> list[dict[str, Any]]:
        """Everything in it."""
        if self._file is None:
            return []
        self._file.seek(0)
        found = [json.loads(line) for line in self._file]
        self._file.seek(0, os.SEEK_END)
        return found

    def begin_anew(self) -> None:
        """They are in a checkpoint now."""
        self.close()
        self.count = 0

    def close(self) -> None:
        """What is in it goes. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None


class BranchTree:
    """The checkpoints below one directory. For several processes at once: a file is complete once it has its name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def add(self, checkpoint: Checkpoint, events: Iterable[dict[str, Any]]) -> None:
        """On the machine's disk when this returns. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        body = {"version": VERSION, **asdict(checkpoint), "events": list(events)}
        durable.write(self._path(checkpoint.id), json.dumps(body).encode(), mode=0o644)

    def all(self) -> list[Checkpoint]:
        """Oldest first. Files that are none of ours are left out."""
        found = [self._read(path.stem)[0] for path in self.directory.glob("*.json") if _ID.fullmatch(path.stem)]
        return sorted(found, key=lambda one: (one.created_at, one.id))

    def get(self, id_or_start: str) -> Checkpoint:
        """By its id or the beginning of it. Raises AgentRuntimeError: there is none, or several begin so."""
        if not re.fullmatch(r"[0-9a-f]{1,12}", id_or_start):
            raise AgentRuntimeError(f"{id_or_start[:60]!r} is no checkpoint's id", hint="see `atoll branch list`")
        found = [path.stem for path in self.directory.glob(f"{id_or_start}*.json") if _ID.fullmatch(path.stem)]
        if len(found) != 1:
            how_many = "several checkpoints begin with" if found else "there is no checkpoint"
            raise AgentRuntimeError(f"{how_many} {id_or_start!r}", hint="see `atoll branch list`")
        return self._read(found[0])[0]

    def history(self, checkpoint: Checkpoint) -> list[Event]:
        """All that had happened by then, from the root on. Raises AgentRuntimeError (a file is missing or damaged)."""
        parts: list[list[dict[str, Any]]] = []
        at: str | None = checkpoint.id
        while at is not None:
            found, events = self._read(at)
            parts.append(events)
            if len(parts) > _MAX_DEPTH:
                raise AgentRuntimeError(f"the way to checkpoint {checkpoint.id} has no end")
            at = found.parent
        return [event_from_dict(event) for events in reversed(parts) for event in events]

    def check_leaf(self, checkpoint: Checkpoint) -> None:
        """Raises AgentRuntimeError: others begin at it."""
        if children := [one.id for one in self.all() if one.parent == checkpoint.id]:
            raise AgentRuntimeError(
                f"checkpoint {checkpoint.id} is where {', '.join(children)} began", hint="delete these first"
            )

    def remove(self, checkpoint: Checkpoint) -> None:
        """Its file; the snapshot is the platform's. Raises AgentRuntimeError: others begin at it."""
        self.check_leaf(checkpoint)
        self._path(checkpoint.id).unlink(missing_ok=True)

    def _path(self, checkpoint_id: str) -> Path:
        return self.directory / f"{checkpoint_id}.json"

    def _read(self, checkpoint_id: str) -> tuple[Checkpoint, list[dict[str, Any]]]:
        try:
            body = json.loads(self._path(checkpoint_id).read_bytes())
            if body.pop("version") != VERSION:
                raise AgentRuntimeError(f"checkpoint {checkpoint_id} was written by another Atoll")
            events = body.pop("events")
            return Checkpoint(**body), events
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AgentRuntimeError(f"checkpoint {checkpoint_id} cannot be read: {error}") from error
