"""The logs of sandboxes, one pair of files each: the newest entries, for as long as ended sandboxes are remembered.

    <directory>/<sandbox id>.jsonl      what is being written
    <directory>/<sandbox id>.old.jsonl  what was, until it was full

Each is at most SEGMENT bytes, so that a sandbox that logs for ever takes two of them. Nothing is kept open.
Which entries a caller gets is `log_query`'s.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from atoll.model.logs import LogEntry, LogLevel
from atoll.model.sandbox import SANDBOX_ID

SEGMENT = 1 << 20
_TAIL = 64 * 1024
_SUFFIX, _OLD_SUFFIX = ".jsonl", ".old.jsonl"


class Logbook:
    """See the module. Writing is cheap enough for the loop (an append to the page cache); reading runs in a thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last: dict[str, int] = {}

    def append(self, sandbox_id: str, entries: Sequence[LogEntry]) -> None:
        """Entries that were appended before (by number) are skipped. Raises OSError."""
        if not SANDBOX_ID.fullmatch(sandbox_id):
            return
        last = self._last.get(sandbox_id)
        if last is None:
            last = self._last_number(sandbox_id)
        fresh = [entry for entry in entries if entry.number > last]
        self._last[sandbox_id] = fresh[-1].number if fresh else last
        if not fresh:
            return
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / (sandbox_id + _SUFFIX)
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as file:
            file.write(b"".join(_line(entry) for entry in fresh))
            full = file.tell() >= SEGMENT
        if full:
            path.rename(self._directory / (sandbox_id + _OLD_SUFFIX))

    def close(self, sandbox_id: str) -> None:
        """It has ended: nothing of it needs to stay in memory. Its files stay."""
        self._last.pop(sandbox_id, None)

    async def read(self, sandbox_id: str) -> list[LogEntry]:
        """All that is kept, oldest first."""
        return await asyncio.to_thread(self._read, sandbox_id)

    async def forget(self, before: datetime) -> int:
        """Removes the files that were last written before then; returns how many."""
        return await asyncio.to_thread(self._forget, before.timestamp())

    def _read(self, sandbox_id: str) -> list[LogEntry]:
        if not SANDBOX_ID.fullmatch(sandbox_id):
            return []
        entries: list[LogEntry] = []
        for suffix in (_OLD_SUFFIX, _SUFFIX):
            with suppress(FileNotFoundError):
                entries += _parse((self._directory / (sandbox_id + suffix)).read_bytes().splitlines())
        return entries

    def _last_number(self, sandbox_id: str) -> int:
        """Of what an earlier server wrote."""
        for suffix in (_SUFFIX, _OLD_SUFFIX):
            with suppress(FileNotFoundError), (self._directory / (sandbox_id + suffix)).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                if entries := _parse(file.read().splitlines()):
                    return entries[-1].number
        return 0

    def _forget(self, before: float) -> int:
        removed = 0
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._directory):
                with suppress(FileNotFoundError):
                    if entry.name.endswith(_SUFFIX) and entry.stat().st_mtime < before:
                        os.unlink(entry.path)
                        removed += 1
        return removed


def _line(entry: LogEntry) -> bytes:
    whole = [entry.number, entry.at.timestamp(), entry.level.value, entry.message, dict(entry.fields)]
    return json.dumps(whole, ensure_ascii=True).encode() + b"\n"


def _parse(lines: Iterable[bytes]) -> list[LogEntry]:
    """A line that a crash cut in two is left out."""
    entries = []
    for line in lines:
        with suppress(ValueError, TypeError):
            number, at, level, message, fields = json.loads(line)
            entries.append(LogEntry(number, datetime.fromtimestamp(at, UTC), LogLevel(level), message, fields))
    return entries
