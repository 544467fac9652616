"""Ends sandboxes at their time. Owns deadlines, no sandbox: it calls `on_due` and forgets.

A heap and one task that sleeps until the earliest deadline or a change. An entry whose deadline was moved stays in the
heap and is recognised as stale when it comes up, so moving a deadline costs O(log n).
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from datetime import datetime

from atoll.control.clock import Clock

_LONGEST_NAP_S = 60.0
"""Deadlines are wall time and a nap is not: a corrected clock or a machine that slept is noticed within this."""

_SLACK = 64


class Expiry:
    """`run` is its task. `on_due(sandbox_id)` is called once per deadline reached; it must not block."""

    def __init__(self, clock: Clock, on_due: Callable[[str], None]) -> None:
        self._clock = clock
        self._on_due = on_due
        self._deadlines: dict[str, datetime] = {}
        self._heap: list[tuple[datetime, str]] = []
        self._changed = asyncio.Event()

    def set(self, sandbox_id: str, at: datetime) -> None:
        """A new deadline, in place of any earlier one."""
        self._deadlines[sandbox_id] = at
        if len(self._heap) > 2 * len(self._deadlines) + _SLACK:
            # Somebody moves deadlines all the time: without this the stale ones would pile up until they come up.
            self._heap = [(moment, name) for name, moment in self._deadlines.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (at, sandbox_id))
        if self._heap[0][1] == sandbox_id:
            self._changed.set()

    def forget(self, sandbox_id: str) -> None:
        """No deadline any more."""
        self._deadlines.pop(sandbox_id, None)

    def deadline(self, sandbox_id: str) -> datetime | None:
        """None: it has none."""
        return self._deadlines.get(sandbox_id)

    def take_due(self, now: datetime) -> list[str]:
        """Those whose time has come, earliest first; they have no deadline from here on."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            at, sandbox_id = heapq.heappop(self._heap)
            if self._deadlines.get(sandbox_id) == at:
                del self._deadlines[sandbox_id]
                due.append(sandbox_id)
        return due

    def next_deadline(self) -> datetime | None:
        """The earliest one that still holds."""
        while self._heap and self._deadlines.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._changed.clear()
            for sandbox_id in self.take_due(self._clock.now()):
                self._on_due(sandbox_id)
            await self._nap(self.next_deadline())

    async def _nap(self, until: datetime | None) -> None:
        if until is None:
            await self._changed.wait()
            return
        seconds = min(max((until - self._clock.now()).total_seconds(), 0.0), _LONGEST_NAP_S)
        sleep = asyncio.ensure_future(self._clock.sleep(seconds))
        change = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({sleep, change}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            change.cancel()
            await asyncio.wait({sleep, change})
