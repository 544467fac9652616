"""Logs and counts when an event loop stood still: no request was served meanwhile, whatever caused it.

A tick comes late on a busy machine too. So what counts is processor time: a tick that is late, and a thread that has
worked all the while, are a stall. A late tick of a thread that hardly worked is only noted: it waited for something
that blocks, or for the machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import structlog

TICK_S = 0.1
STALL_S = 0.25
_BLOCKED_S = 2.0
_HEADER = b"atoll-loop-stalls"

_log = structlog.get_logger("atoll.serve")

Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Any, Send], Awaitable[None]]


class Watchdog:
    """Watches the running loop within its `async with` block. `stalls`: how many there were.

    `stalled` is called for each.
    """

    def __init__(self, process: str, stalled: Callable[[], None] = lambda: None) -> None:
        self._process = process
        self._stalled = stalled
        self.stalls = 0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while True:
            began, worked = time.monotonic(), time.thread_time()
            await asyncio.sleep(TICK_S)
            self.look(time.monotonic() - began - TICK_S, time.thread_time() - worked)

    def look(self, late_s: float, worked_s: float) -> None:
        """One tick: by how much it was late, and the processor time that the loop's thread has had since the last."""
        if late_s >= STALL_S and worked_s >= STALL_S:
            self.stalls += 1
            self._stalled()
            _log.warning("loop.stalled", process=self._process, cpu_ms=round(worked_s * 1e3), stalls=self.stalls)
        elif late_s >= _BLOCKED_S:
            _log.warning("loop.late", process=self._process, late_ms=round(late_s * 1e3), cpu_ms=round(worked_s * 1e3))

    def shown_by(self, app: App) -> App:
        """The application, whose answer to /health says how many stalls there were."""

        async def shown(scope: Any, receive: Any, send: Send) -> None:
            async def with_count(message: Any) -> None:
                if message["type"] == "http.response.start":
                    headers = [*message.get("headers", ()), (_HEADER, b"%d" % self.stalls)]
                    message = {**message, "headers": headers}
                await send(message)

            await app(scope, receive, with_count if scope.get("path") == "/health" else send)

        return shown
