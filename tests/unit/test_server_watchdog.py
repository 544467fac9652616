"""A loop that works without a pause is noticed; a loop that waits, or a machine that is busy, is not taken for one."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from atoll.server.watchdog import STALL_S, TICK_S, Watchdog


def work(seconds: float) -> None:
    """Keeps the thread busy for so much of the processor's time, however long that takes."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def test_work_that_holds_up_the_loop_is_counted_and_shown() -> None:
    async with Watchdog("test") as watchdog:
        await asyncio.sleep(2 * TICK_S)
        assert watchdog.stalls == 0, "the control"
        work(2 * STALL_S + TICK_S)
        await asyncio.sleep(2 * TICK_S)
        assert watchdog.stalls == 1
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})

    async def send(message: Any) -> None:
        seen.append(message)

    for path in ("/health", "/other"):
        await watchdog.shown_by(app)({"type": "http", "path": path}, None, send)
    assert [message["headers"] for message in seen] == [[(b"atoll-loop-stalls", b"1")], []]


def test_a_busy_machine_is_no_stall() -> None:
    watchdog = Watchdog("test")
    watchdog.look(5.0, 0.2)
    watchdog.look(0.2, 5.0)
    assert watchdog.stalls == 0
    watchdog.look(0.3, 0.3)
    assert watchdog.stalls == 1
