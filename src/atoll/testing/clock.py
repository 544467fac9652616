"""A clock that a test moves. Sleepers wake when their time has come, in order."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta


class ManualClock:
    """Implements `control.clock.Clock`. Nothing passes but what `advance` lets pass."""

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._sleepers: list[tuple[datetime, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        alarm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now + timedelta(seconds=seconds), alarm))
        await alarm

    async def advance(self, seconds: float) -> None:
        """Moves time, stopping at every alarm on the way so that what wakes sees its own moment."""
        end = self._now + timedelta(seconds=seconds)
        await _let_others_run()
        while due := sorted((one for one in self._sleepers if one[0] <= end), key=lambda one: one[0])[:1]:
            self._sleepers.remove(due[0])
            self._now = max(self._now, due[0][0])
            if not due[0][1].done():
                due[0][1].set_result(None)
            await _let_others_run()
        self._now = end
        await _let_others_run()

    async def jump(self, seconds: float) -> None:
        """Moves time at once: what sleeps wakes once, late, as after a machine's sleep."""
        self._now += timedelta(seconds=seconds)
        await self.advance(0)


async def _let_others_run() -> None:
    for _ in range(20):
        await asyncio.sleep(0)
