"""Port 49999 on the sandbox's own loopback: programs inside may ask whether the interpreter is well, as E2B's may.

Cells are run for the sandbox's owner alone, who comes by the guest's socket. A few connections at a time: nobody inside
can use up the guest's descriptors.
"""

from __future__ import annotations

import asyncio
import socket

from atoll.http1.server import Handler, HttpConnection, Request, Response
from atoll.model.sandbox import INTERPRETER_PORT

_AT_ONCE = 8


class _Connection(HttpConnection):
    def __init__(self, handler: Handler, loop: asyncio.AbstractEventLoop, free: asyncio.Semaphore) -> None:
        super().__init__(handler, loop)
        self._free = free

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._free.release()


async def serve(handler: Handler, loop: asyncio.AbstractEventLoop) -> None:
    """Until it is cancelled; at once done where the port is taken or there is no loopback."""

    async def health(request: Request) -> Response:
        if request.path == "/health":
            return await handler(request)
        return Response.error(403, "from inside the sandbox only /health is answered")

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", INTERPRETER_PORT))
            listener.listen(_AT_ONCE)
        except OSError:
            return
        free = asyncio.Semaphore(_AT_ONCE)
        while True:
            await free.acquire()
            accepted, _ = await loop.sock_accept(listener)
            await loop.connect_accepted_socket(lambda: _Connection(health, loop, free), accepted)
