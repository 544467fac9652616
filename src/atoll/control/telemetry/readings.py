"""A sandbox's readings over time: a Series in memory, and its file, from which the next server goes on.

A Series is bounded: when it is full, every second reading of it goes, so that a long life is still covered from its
beginning, the older the coarser. The file holds the same readings:

    <directory>/<sandbox id>.readings    b"ATOLL-R1", then 7 little-endian doubles for each: Unix seconds, CPU percent,
                                         memory used, cache, total, disk used, total (bytes; -1: unknown)

A reading is appended as it is taken (an append to the page cache), so that not even a killed server loses one; when the
series is thinned out, its file is written anew. A reading that a crash cut in two is left out.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from atoll.model.devices import GpuUse
from atoll.model.sandbox import SANDBOX_ID, SandboxStats

CAPACITY = 720
_WIDTH = 7
_SIZE = 8 * _WIDTH
_UNKNOWN = -1.0
_MAGIC = b"ATOLL-R1"
_SUFFIX = ".readings"


@dataclass(frozen=True, slots=True)
class Reading:
    """Stats and when they were taken."""

    at: datetime
    stats: SandboxStats


class Series:
    """One sandbox's readings, oldest first; 56 bytes each, CAPACITY at most."""

    def __init__(self) -> None:
        self._cells = array("d")
        self._gpus: tuple[GpuUse, ...] = ()
        """Of the newest reading alone."""

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """Of what `packed` made, as far as it is whole."""
        series = cls()
        series._cells.frombytes(data[: min(len(data) // _SIZE, CAPACITY) * _SIZE])
        if sys.byteorder == "big":
            series._cells.byteswap()
        return series

    def packed(self, newest: int = CAPACITY) -> bytes:
        """The newest so many."""
        cells = self._cells[-newest * _WIDTH :]
        if sys.byteorder == "big":
            cells.byteswap()
        return cells.tobytes()

    def __len__(self) -> int:
        return len(self._cells) // _WIDTH

    def add(self, reading: Reading) -> bool:
        """The newest. True: the others were thinned out for it."""
        full = len(self) >= CAPACITY
        if full:
            kept = array("d")
            for at in range(0, len(self), 2):
                kept += self._cells[at * _WIDTH : (at + 1) * _WIDTH]
            self._cells = kept
        stats = reading.stats
        self._gpus = stats.gpus
        self._cells.extend(
            _UNKNOWN if value is None else value
            for value in (
                reading.at.timestamp(),
                stats.cpu_used_pct,
                stats.memory_used,
                stats.memory_cache,
                stats.memory_total,
                stats.disk_used,
                stats.disk_total,
            )
        )
        return full

    def between(self, start_s: int | None, end_s: int | None) -> list[Reading]:
        """Those taken from `start_s` to `end_s`, whole Unix seconds, both included."""
        readings = (self._reading(at) for at in range(len(self)))
        return [
            one
            for one in readings
            if (start_s is None or int(one.at.timestamp()) >= start_s)
            and (end_s is None or int(one.at.timestamp()) <= end_s)
        ]

    @property
    def last(self) -> Reading | None:
        """None: there is none yet."""
        return self._reading(len(self) - 1) if len(self) else None

    def _reading(self, at: int) -> Reading:
        moment, cpu, memory, cache, memory_total, disk, disk_total = self._cells[at * _WIDTH : (at + 1) * _WIDTH]
        return Reading(
            datetime.fromtimestamp(moment, UTC),
            SandboxStats(
                cpu_used_pct=_known(cpu),
                memory_used=_whole(memory),
                memory_cache=_whole(cache),
                memory_total=int(memory_total),
                disk_used=_whole(disk),
                disk_total=int(disk_total),
                pids=None,
                gpus=self._gpus if at == len(self) - 1 else (),
            ),
        )


def _known(value: float) -> float | None:
    return None if value == _UNKNOWN else value


def _whole(value: float) -> int | None:
    return None if value == _UNKNOWN else int(value)


class ReadingFiles:
    """The series on disk; see the module. Every call raises OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, sandbox_id: str) -> Series:
        """What an earlier server took; empty if there is nothing that can be used."""
        try:
            data = self._path(sandbox_id).read_bytes()
        except FileNotFoundError:
            return Series()
        if not data.startswith(_MAGIC):
            return Series()
        series = Series.unpacked(data[len(_MAGIC) :])
        if len(data) != len(_MAGIC) + len(series) * _SIZE:
            self.replace(sandbox_id, series)  # cut in two by a crash: what is appended next must not land off the grid
        return series

    def append(self, sandbox_id: str, series: Series) -> None:
        """The newest reading of the series."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self._path(sandbox_id), flags, 0o600)
        except FileNotFoundError:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path(sandbox_id), flags, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as file:
            file.write((b"" if file.tell() else _MAGIC) + series.packed(1))

    def replace(self, sandbox_id: str, series: Series) -> None:
        """All of the series, in place of what was there; a reader sees the one or the other."""
        draft = self._path(sandbox_id).with_suffix(".new")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(_MAGIC + series.packed())
        draft.rename(self._path(sandbox_id))

    def remove(self, sandbox_id: str) -> None:
        """Idempotent."""
        self._path(sandbox_id).unlink(missing_ok=True)

    def remove_all_but(self, live: Collection[str]) -> None:
        """Those of sandboxes that ended while no server was there to see it."""
        with suppress(FileNotFoundError):
            for entry in os.scandir(self._directory):
                if entry.name.partition(".")[0] not in live:
                    os.unlink(entry.path)

    def _path(self, sandbox_id: str) -> Path:
        assert SANDBOX_ID.fullmatch(sandbox_id), sandbox_id
        return self._directory / (sandbox_id + _SUFFIX)
