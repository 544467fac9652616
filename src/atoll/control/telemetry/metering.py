"""What sandboxes used over time: a reading of each every few seconds, kept for the sandbox's life (`readings`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import structlog

from atoll.control.clock import Clock
from atoll.control.telemetry.readings import Reading, ReadingFiles, Series
from atoll.model.errors import AtollError
from atoll.model.sandbox import SandboxStats

EVERY_S = 5.0
FRESH_S = 1.0
"""A reading that old is as good as one taken now."""

T = TypeVar("T")

_log = structlog.get_logger("atoll.control")

Read = Callable[[str], Awaitable[SandboxStats]]


class Meter:
    """Takes the readings: `run` is its task. One sandbox after the other, so that many of them cost no burst."""

    def __init__(self, clock: Clock, live: Callable[[], Iterable[str]], read: Read, files: ReadingFiles) -> None:
        self._clock = clock
        self._live = live
        self._read = read
        self._files = files
        self._series: dict[str, Series] = {}
        self._disk_failed = False

    async def run(self) -> None:
        """Until it is cancelled."""
        self._on_disk(lambda: self._files.remove_all_but(set(self._live())))
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
        last = self._of(sandbox_id).last
        if last is None or (self._clock.now() - last.at).total_seconds() > FRESH_S:
            self._add(sandbox_id, await self._read(sandbox_id))
        return self._series[sandbox_id]

    def forget(self, sandbox_id: str) -> None:
        """It has ended. Idempotent."""
        self._series.pop(sandbox_id, None)
        self._on_disk(lambda: self._files.remove(sandbox_id))

    async def _take(self, sandbox_id: str) -> None:
        try:
            stats = await self._read(sandbox_id)
        except AtollError:
            return  # it is being made, or ends just now
        except Exception:
            _log.exception("metrics.not_read", sandbox_id=sandbox_id)
            return
        self._add(sandbox_id, stats)

    def _of(self, sandbox_id: str) -> Series:
        if sandbox_id not in self._series:
            self._series[sandbox_id] = self._on_disk(lambda: self._files.load(sandbox_id)) or Series()
        return self._series[sandbox_id]

    def _add(self, sandbox_id: str, stats: SandboxStats) -> None:
        series = self._of(sandbox_id)
        thinned = series.add(Reading(self._clock.now(), stats))
        write = self._files.replace if thinned else self._files.append
        self._on_disk(lambda: write(sandbox_id, series))

    def _on_disk(self, work: Callable[[], T]) -> T | None:
        """A disk that is full costs the next server its past, and nothing else; logged once until it works again."""
        try:
            result = work()
        except OSError as error:
            if not self._disk_failed:
                _log.warning("metrics.not_kept", error=str(error))
            self._disk_failed = True
            return None
        self._disk_failed = False
        return result
