"""The log of a template build: one JSON object per line in `<directory>/<build_id>.jsonl`, bounded.

A build that writes more than MAX_ENTRIES or MAX_BYTES goes on; its log says that the rest is missing.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

MAX_ENTRIES = 20_000
MAX_BYTES = 16 << 20
MAX_LINE = 4096
PAGE = 100
"""Entries of one answer; clients come again for more."""

LEVELS = ("debug", "info", "warn", "error")
_BUILD_ID = re.compile(r"[0-9a-f-]{36}")
_LINE_END = re.compile(r"[\r\n]")


@dataclass(frozen=True, slots=True)
class BuildLogEntry:
    """One line. `step`: "base", the step's number from 1, or "finalize"."""

    at: datetime
    level: str
    message: str
    step: str = ""


class BuildLog:
    """A build's log while it is built. `close` it."""

    def __init__(self, path: Path, now: Callable[[], datetime]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = path.open("a", encoding="utf-8")
        self._now = now
        self._entries = 0
        self._bytes = 0
        self.step = ""

    def close(self) -> None:
        """Idempotent."""
        self._file.close()

    @property
    def is_full(self) -> bool:
        """Whether nothing more will be in it."""
        return self._entries > MAX_ENTRIES or self._bytes > MAX_BYTES

    def write(self, *messages: str, level: str = "info") -> None:
        """Adds lines; silently nothing once the log is full, or when the disk is."""
        written: list[str] = []
        at = self._now().isoformat()
        for message in messages:
            if self.is_full:
                break
            self._entries += 1
            if self._entries > MAX_ENTRIES or self._bytes + len(message) > MAX_BYTES:
                message, self._entries = "the log is full: the rest of this build is not in it", MAX_ENTRIES + 1
            entry = {"at": at, "level": level, "message": message[:MAX_LINE], "step": self.step}
            written.append(json.dumps(entry, ensure_ascii=False) + "\n")
            self._bytes += len(written[-1])
        if written:
            with contextlib.suppress(OSError, UnicodeError):
                self._file.write("".join(written))
                self._file.flush()

    def output(self) -> OutputLines:
        """What a command writes, as lines of this log."""
        return OutputLines(self)


class OutputLines:
    """Cuts output into lines, stdout and stderr apart."""

    def __init__(self, log: BuildLog) -> None:
        self._log = log
        self._decoders = {stream: codecs.getincrementaldecoder("utf-8")("replace") for stream in (False, True)}
        self._rest = {False: "", True: ""}

    def take(self, data: bytes, is_error: bool) -> None:
        """Some bytes of one of the two. A flood of short lines costs one write."""
        if self._log.is_full:
            return
        text = self._rest[is_error] + self._decoders[is_error].decode(data)
        *lines, rest = _LINE_END.split(text)
        if len(rest) > MAX_LINE:
            lines, rest = [*lines, rest], ""
        self._rest[is_error] = rest
        self._put(lines, is_error)

    def end(self) -> None:
        """Lines without an end."""
        for is_error, rest in self._rest.items():
            self._put([rest], is_error)

    def _put(self, lines: Sequence[str], is_error: bool) -> None:
        self._log.write(*filter(None, lines), level="warn" if is_error else "info")


class BuildLogs:
    """The logs of all builds below one directory."""

    def __init__(self, directory: Path, now: Callable[[], datetime]) -> None:
        self._directory = directory
        self._now = now

    def open(self, build_id: str) -> BuildLog:
        """For writing. Raises OSError."""
        return BuildLog(self._path(build_id), self._now)

    def read(self, build_id: str, offset: int = 0, limit: int = PAGE, level: str = "debug") -> list[BuildLogEntry]:
        """From the entry with number `offset`, no more than `limit`, of `level` or graver. Blocks."""
        levels = LEVELS[LEVELS.index(level) :] if level in LEVELS[1:] else LEVELS
        found: list[BuildLogEntry] = []
        with contextlib.suppress(OSError), self._path(build_id).open(encoding="utf-8") as file:
            number = 0
            for line in file:
                if number < offset and levels is LEVELS:
                    number += 1
                    continue
                if (entry := _parse(line)) is None or entry.level not in levels:
                    continue
                if number >= offset:
                    found.append(entry)
                number += 1
                if len(found) >= limit:
                    break
        return found

    def remove(self, build_ids: Sequence[str]) -> None:
        """Blocks."""
        for build_id in build_ids:
            with contextlib.suppress(OSError):
                self._path(build_id).unlink()

    def _path(self, build_id: str) -> Path:
        if not _BUILD_ID.fullmatch(build_id):
            raise ValueError(f"{build_id[:50]!r} is no build's id")
        return self._directory / f"{build_id}.jsonl"


def _parse(line: str) -> BuildLogEntry | None:
    try:
        entry = json.loads(line)
        at = datetime.fromisoformat(entry["at"]).astimezone(UTC)
        return BuildLogEntry(at, entry["level"], entry["message"], entry["step"])
    except (ValueError, KeyError, TypeError):  # the last line of a log whose server was killed
        return None
