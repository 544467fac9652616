"""What a client that goes away in the middle of a request gives up. For requests that make something: only these.

ASGI shows it twice: `receive` answers `http.disconnect` while the request is worked on, and `send` raises OSError when
the answer cannot be delivered any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


@asynccontextmanager
async def cancelled_with(request: Request) -> AsyncIterator[None]:
    """The block is cancelled when the client goes away. The request's body must have been read."""
    working = asyncio.current_task()
    assert working is not None

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        working.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


class Owed(Response):
    """An answer without which what was made is of no use to anybody: `undo` is awaited when the client has gone."""

    def __init__(self, answer: Response, undo: Callable[[], Awaitable[None]]) -> None:
        super().__init__(answer.body, answer.status_code, media_type=answer.media_type)
        self.raw_headers = answer.raw_headers
        self._undo = undo

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI's. Raises OSError when the client has gone."""
        try:
            await super().__call__(scope, receive, send)
        except OSError:
            await self._undo()
            raise
