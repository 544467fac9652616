"""The lines of one execution between its kernel and its client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from atoll.guest.interpreter import jupyter
from atoll.guest.log import CellLog

KEEPALIVE_S = 5.0
BUFFERED_BYTES = 8 * 1024 * 1024
"""Output that waits for a slow client before the kernel's output is no longer read."""


class Source(Protocol):
    """Where the lines come from: something that can be asked to wait."""

    def pause_output(self) -> None: ...

    def resume_output(self) -> None: ...


class Output:
    """The lines of one execution on their way to its client: bounded by pausing the kernel, never by losing lines.

    `take` gives all that is there as one piece of bytes. Once the client is gone (`abandon`) lines go nowhere.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._abandoned = False
        self._waiter: asyncio.Future[None] | None = None
        self.source: Source | None = None
        self.log: CellLog | None = None
        """What goes into the sandbox's log, whether the client is still there or not; from the cell's turn on."""

    @property
    def abandoned(self) -> bool:
        return self._abandoned

    def put(self, line: Mapping[str, Any]) -> None:
        if self.log is not None:
            self.log.line(line)
        if self._abandoned or self._ended:
            return
        data = jupyter.encode_line(line)
        self._lines.append(data)
        self._size += len(data)
        if self._size >= BUFFERED_BYTES and self.source is not None:
            self.source.pause_output()
        self._wake()

    def end(self) -> None:
        """After this `take` gives what is left, then nothing."""
        self.put(jupyter.END_OF_EXECUTION)
        if self.log is not None:
            self.log.ended()
        self._ended = True
        self._wake()

    def abandon(self) -> None:
        self._abandoned = True
        self._lines.clear()
        self._size = 0
        if self.source is not None:
            self.source.resume_output()

    async def take(self) -> bytes:
        """Empty at the end. A keepalive line when nothing came for KEEPALIVE_S."""
        if not self._lines and not self._ended:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(KEEPALIVE_S, self._keep_alive)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        data = b"".join(self._lines)
        self._lines.clear()
        self._size = 0
        if self.source is not None:
            self.source.resume_output()
        return data

    def _keep_alive(self) -> None:
        self.put(jupyter.KEEPALIVE)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
