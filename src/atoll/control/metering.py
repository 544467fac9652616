"""What sandboxes used over time: a reading of each every few seconds, kept in memory for the sandbox's life.

A Series is bounded: when it is full, every second reading of it goes, so that a long life is still told from its
beginning, the older the coarser. History does not outlive the server: a restarted one begins it anew.
"""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from atoll.control.clock import Clock
from atoll.model.errors import AtollError
from atoll.model.sandbox import SandboxStats

EVERY_S = 5.0
FRESH_S = 1.0
"""A reading that old is as good as one taken now."""
CAPACITY = 720

_WIDTH = 7
_UNKNOWN = -1.0

_log = structlog.get_logger("atoll.control")


@dataclass(frozen=True, slots=True)
class Reading:
    """Stats and when they were taken."""

    at: datetime
    stats: SandboxStats


class Series:
    """One sandbox's readings, oldest first; 56 bytes each, CAPACITY at most."""

    def __init__(self) -> None:
        self._cells = array("d")

    def __len__(self) -> int:
        return len(self._cells) // _WIDTH

    def add(self, reading: Reading) -> None:
        """The newest."""
        if len(self) >= CAPACITY:
            kept = array("d")
            for at in range(0, len(self), 2):
                kept += self._cells[at * _WIDTH : (at + 1) * _WIDTH]
            self._cells = kept
        stats = reading.stats
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
            ),
        )


def _known(value: float) -> float | None:
    return None if value == _UNKNOWN else value


def _whole(value: float) -> int | None:
    return None if value == _UNKNOWN else int(value)


Read = Callable[[str], Awaitable[SandboxStats]]


class Meter:
    """Takes the readings: `run` is its task. One sandbox after the other, so that many of them cost no burst."""

    def __init__(self, clock: Clock, live: Callable[[], Iterable[str]], read: Read) -> None:
        self._clock = clock
        self._live = live
        self._read = read
        self._series: dict[str, Series] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._clock.sleep(EVERY_S)
            live = list(self._live())
            for gone in self._series.keys() - set(live):
                self.forget(gone)
            for sandbox_id in live:
                await self._take(sandbox_id)
                await asyncio.sleep(0)

    async def history(self, sandbox_id: str) -> Series:
        """With a reading of this moment as its last. Raises SandboxGone."""
        series = self._series.get(sandbox_id)
        last = series.last if series is not None else None
        if last is None or (self._clock.now() - last.at).total_seconds() > FRESH_S:
            self._add(sandbox_id, await self._read(sandbox_id))
        return self._series[sandbox_id]

    def forget(self, sandbox_id: str) -> None:
        """It has ended. Idempotent."""
        self._series.pop(sandbox_id, None)

    async def _take(self, sandbox_id: str) -> None:
        try:
            stats = await self._read(sandbox_id)
        except AtollError:
            return  # it is being made, or ends just now
        except Exception:
            _log.exception("metrics.not_read", sandbox_id=sandbox_id)
            return
        self._add(sandbox_id, stats)

    def _add(self, sandbox_id: str, stats: SandboxStats) -> None:
        self._series.setdefault(sandbox_id, Series()).add(Reading(self._clock.now(), stats))
