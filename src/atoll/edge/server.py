"""The listener: one TCP port for the control plane and for every sandbox, and another one for the same over TLS.

Owns the client connections, the pool of upstream connections, the sweeper that enforces their time-outs, and the
tasks of exchanges. Opened by `listen`, closed by `aclose`; both belong to the composition root.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Coroutine, Iterable
from typing import Any, Protocol

import structlog

from atoll.edge.answers import Answer
from atoll.edge.asgi import AsgiApp
from atoll.edge.client import ClientConnection
from atoll.edge.h2 import TlsFront
from atoll.edge.hostname import LOCAL_DOMAIN, domain_of
from atoll.edge.output_rate import OutputRates
from atoll.edge.room import Guest, Room
from atoll.edge.upstream import Pool
from atoll.model.seams import RouteTable
from atoll.model.tasks import OwnedTasks

SWEEP_S = 2.0
HANDSHAKE_S = 15.0


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to `host`:`port` (0: a free one), not listening yet. Raises OSError saying which address."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(error.errno, f"cannot use the address {host!r}: {error.strerror or error}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return sock


class Connection(Guest, Protocol):
    """A client's connection as the edge sees it; a stream of HTTP/2 counts as one too."""

    deadline: float | None
    """Loop time at which it expires."""

    @property
    def held(self) -> bool: ...
    @property
    def peer_left(self) -> bool: ...
    def close_idle(self) -> None: ...
    def abort(self) -> None: ...


class Edge:
    """The way in. One per server process and event loop.

    `rates`: how fast each sandbox may send to its clients; None for no limit.
    """

    def __init__(
        self, routes: RouteTable, app: AsgiApp, *, domains: Iterable[str] = (), rates: OutputRates | None = None
    ) -> None:
        self.routes = routes
        self.app = app
        self.domains = frozenset({LOCAL_DOMAIN} | {domain_of(domain) for domain in domains})
        self.log = structlog.get_logger("atoll.edge")
        self.room = Room()
        self.connections: set[Connection] = set()
        """All that are open, also those that are being refused."""
        self.address: tuple[str, int] = ("", 0)
        self.stopping = False
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.pool = Pool(self.now, rates or OutputRates(None, self.now))
        self._emptied = asyncio.Event()
        self._sweeper = OwnedTasks()
        self._tasks = OwnedTasks(lambda error: self.log.error("exchange failed", exc_info=error))
        self._servers: list[asyncio.Server] = []

    async def listen(self, sock: socket.socket) -> tuple[str, int]:
        """Accepts connections on a bound socket from now on, and owns it; returns its address."""
        name = sock.getsockname()
        self.address = (str(name[0]), int(name[1]))
        server = await self.loop.create_server(lambda: ClientConnection(self), sock=sock, backlog=1024)
        self._servers.append(server)
        self._sweeper.start(self._sweep())
        return self.address

    async def listen_tls(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Accepts TLS connections, HTTP/1.1 or 2 as their ALPN says, on another bound socket, and owns it."""
        server = await self.loop.create_server(
            lambda: TlsFront(self), sock=sock, backlog=1024, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
        )
        self._servers.append(server)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs an exchange's work; it ends with the edge at the latest."""
        return self._tasks.start(work)

    def enter(self, connection: Connection) -> Answer | None:
        """A client's connection begins. The answer for one too many, or None."""
        self.connections.add(connection)
        if self.room.enter(connection):
            return None
        return Answer(503, "too many connections are open and busy; try again later")

    def left(self, connection: Connection) -> None:
        """A client's connection ended."""
        self.connections.discard(connection)
        self.room.leave(connection)
        if not self.connections:
            self._emptied.set()

    async def aclose(self, grace_s: float = 5.0) -> None:
        """Stops accepting, lets running exchanges finish for `grace_s`, then cuts them. Idempotent."""
        self.stopping = True
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        for connection in list(self.connections):
            connection.close_idle()
        if self.connections:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), grace_s)
        for connection in list(self.connections):
            connection.abort()
        self.pool.close()
        await self._sweeper.aclose()
        await self._tasks.aclose()
        await asyncio.sleep(0)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self.now()
            with contextlib.suppress(RuntimeError):
                for connection in list(self.connections):
                    if connection.deadline is not None and now > connection.deadline:
                        connection.expire()
                    elif connection.held and connection.peer_left:
                        connection.abort()
                self.pool.sweep()
