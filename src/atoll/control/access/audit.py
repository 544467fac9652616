"""The audit log: what every API key did, as lines that cannot be changed, left out or put in between unnoticed.

    <directory>/audit-000000000001.jsonl     one JSON object a line; the number is that of the first entry in the file

    {"at": …, "key": …, …, "n": 7, "prev": hash of entry 6, "hash": SHA-256 over the rest, keys sorted, no spaces}

Files are only appended to. When all are larger than they may be, the oldest goes: the chain then begins later, which
`Verified.first` shows. That the end is missing shows only who knows a later hash: keep `Verified.head` elsewhere.

A thread writes; a request hands over an entry and goes on. A server that is killed loses what it was about to write, a
machine that goes down what was not synced (once a second at most).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from atoll.model.errors import InvalidRequest

DIRECTORY = "audit"
"""Below what the control plane keeps."""

BEGINNING = "0" * 64
"""What the first entry follows."""

_NAME = re.compile(r"audit-(\d{12})\.jsonl")
_MOST_WAITING = 10_000
_AT_ONCE = 100
"""Entries of one write, of which a file has at least one: few beside the smallest log that can be asked for."""
_FILES = 16
"""Into how many files the whole is divided: so much of it goes at a time."""
_AGAIN_AFTER_S = 1.0
_SYNC_EVERY_S = 1.0
_LONGEST_LINE = 1 << 20

_log = structlog.get_logger("atoll.control")

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verified:
    """A chain that is whole. `first` is the number of its first entry, more than 1 where earlier ones were removed."""

    entries: int
    first: int
    head: str
    """The hash of its last entry."""
    cut_off: bool
    """Behind it is a line without its end: a server is writing it, or was killed meanwhile."""


class AuditLog:
    """`with AuditLog(...) as log:` writes what `note` gets until the block ends. One for each directory.

    Args:
        most_mib: what all files together may take, in MiB.
    """

    def __init__(self, directory: Path, most_mib: int) -> None:
        self._directory = directory
        self.most_bytes = most_mib << 20
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._lost = self._lost_noted = 0
        self._noted: Counter[str | None] = Counter()
        self._written: Counter[str | None] = Counter()
        """By team, since the beginning; like the two above the first is `note`'s alone, the second the thread's."""
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._file = -1
        self._size = self._number = 0
        self._head = BEGINNING
        self._failed = False
        self._synced = 0.0

    def __enter__(self) -> Self:
        """Raises OSError: the directory cannot be used."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open_last()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.put(None)
        self._thread.join(10)
        if self._file >= 0 and not self._thread.is_alive():
            os.close(self._file)
            self._file = -1

    def note(self, entry: Entry) -> None:
        """Adds it, soon. Never blocks, never raises: where the disk takes none for long, it is counted as lost."""
        team = entry.get("team")
        waiting = self._noted[team] - self._written[team] if team is not None else 0
        if self._queue.qsize() >= _MOST_WAITING or waiting >= _MOST_WAITING // 2:  # no team takes all the places
            self._lost += 1
            return
        self._noted[team] += 1
        self._queue.put(entry)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        stopping = False
        while not stopping:
            batch: list[Entry] = []
            waiting = self._queue.get()
            while waiting is not None:
                batch.append(waiting)
                if len(batch) == _AT_ONCE:
                    break
                try:
                    waiting = self._queue.get_nowait()
                except queue.Empty:
                    break
            stopping = waiting is None
            if (lost := self._lost - self._lost_noted) > 0:
                self._lost_noted += lost
                batch.append({"at": _now(), "action": "lost", "count": lost})
            while batch and not self._write(batch):
                if stopping:
                    break
                time.sleep(_AGAIN_AFTER_S)
            self._written.update(entry.get("team") for entry in batch)

    def _write(self, batch: list[Entry]) -> bool:
        number, head, lines = self._number, self._head, bytearray()
        for entry in batch:
            number += 1
            line, head = sealed(entry, number, head)
            lines += line
        try:
            if self._file < 0 or (self._size and self._size + len(lines) > self.most_bytes // _FILES):
                self._begin_file(len(lines))
            written = os.write(self._file, lines)
            if written < len(lines):
                raise OSError(f"only {written} of {len(lines)} bytes were taken")
            if time.monotonic() - self._synced > _SYNC_EVERY_S:
                os.fdatasync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            if not self._failed:
                _log.error("audit.not_written", error=str(error), waiting=self._queue.qsize())
            self._failed = True
            return False
        self._failed = False
        self._size += len(lines)
        self._number, self._head = number, head
        return True

    def _begin_file(self, size: int) -> None:
        """Makes room for a file that will have that many bytes, or its part of the whole. Raises OSError."""
        if self._file >= 0:
            os.fdatasync(self._file)
            os.close(self._file)
            self._file = -1
        path = self._directory / f"audit-{self._number + 1:012d}.jsonl"
        self._file, self._size = _open(path), 0
        files = _files(self._directory)
        sizes = {one: one.stat().st_size for one in files}
        for one in files[:-1]:
            if sum(sizes.values()) <= self.most_bytes - max(size, self.most_bytes // _FILES):
                break
            one.unlink()
            del sizes[one]

    def _open_last(self) -> None:
        files = _files(self._directory)
        # A line without its end is of a server that was killed: nobody was ever answered by half a line.
        while files and not (data := files[-1].read_bytes()).count(b"\n"):
            files.pop().unlink()
        if not files:
            return
        self._file = _open(files[-1])
        self._size = data.rfind(b"\n") + 1
        if self._size < len(data):
            os.ftruncate(self._file, self._size)
        try:
            last = json.loads(data[: self._size].splitlines()[-1])
            self._number, self._head = int(last["n"]), str(last["hash"])
        except (ValueError, KeyError, TypeError) as error:
            _log.error("audit.damaged", file=str(files[-1]), error=str(error))
            number = int(files[-1].stem.rpartition("-")[2]) + data.count(b"\n")
            self._number, self._head = number, hashlib.sha256(data).hexdigest()


def sealed(entry: Entry, number: int, previous: str) -> tuple[bytes, str]:
    """The line of an entry, and its hash."""
    body = {**entry, "n": number, "prev": previous}
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "hash": digest}) + b"\n", digest


def entries(directory: Path) -> Iterator[dict[str, Any]]:
    """All of them, oldest first, as they are in the files; a line without its end is left out.

    Raises InvalidRequest for a line that is no entry, OSError.
    """
    for path in _files(directory):
        with path.open("rb") as file:
            for line in iter(lambda file=file: file.readline(_LONGEST_LINE), b""):  # type: ignore[misc]
                if not line.endswith(b"\n"):
                    break
                try:
                    found = json.loads(line)
                except ValueError as error:
                    raise InvalidRequest(f"{path}: a line is no JSON: it was changed") from error
                if not isinstance(found, dict):
                    raise InvalidRequest(f"{path}: a line is no entry: it was changed")
                yield found


def verify(directory: Path, head: str | None = None) -> Verified:
    """Follows the chain. `head`: a hash that must be in it, from an earlier look.

    Raises InvalidRequest naming the first entry that does not fit, OSError.
    """
    count, first, number, previous, seen = 0, 0, 0, BEGINNING, head is None or head == BEGINNING
    for entry in entries(directory):
        claimed = entry.pop("hash", None)
        if count == 0:
            first = number = int(entry["n"]) if isinstance(entry.get("n"), int) else 0
            previous = BEGINNING if first == 1 else str(entry.get("prev"))
        else:
            number += 1
        if entry.get("n") != number or entry.get("prev") != previous:
            raise InvalidRequest(f"audit entry {number}: it does not follow the one before: entries are missing or new")
        if hashlib.sha256(_canonical(entry)).hexdigest() != claimed:
            raise InvalidRequest(f"audit entry {number}: it was changed")
        previous, count = str(claimed), count + 1
        seen = seen or claimed == head
    if not seen:
        raise InvalidRequest(f"no entry has the hash {str(head)[:64]}: the log was cut off before it, or written anew")
    last = _files(directory)[-1:]
    return Verified(count, first, previous, any(_is_cut_off(path) for path in last))


def _is_cut_off(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read(1) not in (b"", b"\n")


def _files(directory: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
    return []


def _open(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
