"""Connections from the edge to a port of a sandbox, and the pool of idle ones.

A sandbox is not trusted: what it answers is parsed and checked, and a connection that sent anything out of turn is
never used again. The taker of a connection is its `reader` until it is given back or closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Protocol, cast

import httptools

from atoll.edge.head import MAX_FIELDS, MAX_HEAD_BYTES, BadHead, Headers
from atoll.edge.output_rate import OutputRates
from atoll.edge.routes import GUEST_PORTS
from atoll.model.seams import Route

HIGH_WATER = 256 * 1024
"""Bytes waiting in one direction above which the other side is not read any more."""

GUEST_IDLE_S = 25.0
"""The guest keeps an idle connection longer than this."""

USER_IDLE_S = 2.0
"""User programs often close theirs after five seconds."""

MAX_IDLE_PER_PORT = 16


class Reader(Protocol):
    """Who gets what an upstream connection says. Calls come in this order: head, body…, done | lost."""

    def upstream_head(self, status: int, reason: bytes, headers: Headers) -> bool:
        """An interim or final head. Returns True when no body follows, whatever the fields say (HEAD)."""
        ...

    def upstream_body(self, chunk: bytes) -> None: ...

    def upstream_done(self, reusable: bool) -> None:
        """The answer is complete; the reader gives the connection back or closes it."""
        ...

    def upstream_raw(self, data: bytes) -> None:
        """Bytes after a 101."""
        ...

    def upstream_eof(self) -> None:
        """After a 101: the sandbox will send no more."""
        ...

    def upstream_lost(self, error: str, answered: bool) -> None:
        """The connection ended too early. `answered`: some byte of an answer had arrived."""
        ...

    def upstream_writable(self, writable: bool) -> None:
        """The sandbox reads too slowly, or again fast enough."""
        ...


class UpstreamConnection(asyncio.Protocol):
    """One connection. Speaks HTTP/1.1 until a 101, then is a pipe."""

    def __init__(
        self,
        key: tuple[str, int],
        sock: socket.socket,
        on_lost: Callable[[UpstreamConnection], None],
        rates: OutputRates,
    ) -> None:
        self.key = key
        self._rates = rates
        self._waiting: asyncio.TimerHandle | None = None
        """Runs while the sandbox has sent more than its rate allows: nothing is read until it ends."""
        self._needed = True
        """Whether the reader's side can take more."""
        self.reader: Reader | None = None
        self.reused = False
        self.idle_since = 0.0
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # set by connection_made, before any use
        self._sock = sock
        self._on_lost = on_lost
        self._lost = False
        self._raw = False
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._reason = b""
        self._headers: Headers = []
        self._head_bytes = 0
        self._in_head = True
        self._answered = False
        self._done = False
        self._until_close = False
        self._keep_alive = False
        self._dirty = False
        self._failure = ""

    # What the reader's side calls.

    @property
    def usable(self) -> bool:
        """True if it is open and has nothing unexpected to say: a closed or chatty peer is found before it is used."""
        if self._lost or self._dirty or self.transport.is_closing():
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

    def begin(self, reader: Reader) -> None:
        """Takes the connection for one exchange."""
        self._reset()
        self.reader = reader

    def release(self) -> None:
        """Makes it nobody's."""
        self.reader = None

    def write(self, data: bytes) -> None:
        if not self._lost:
            self.transport.write(data)

    def write_eof(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, NotImplementedError):
            self.transport.write_eof()

    @property
    def counted(self) -> bool:
        """Every byte must come through here, for the sandbox's rate."""
        return self._rates.limited

    @property
    def socket(self) -> socket.socket:
        """For moving the rest of a body without reading it here; `body_moved` says that it is done."""
        return self._sock

    def body_moved(self) -> None:
        """The body of the current answer was taken from the socket, to its last byte. The next has a parser anew."""
        self._done = True
        if self.reader is not None:
            self.reader.upstream_done(self._keep_alive and not self._dirty)

    def read_until_close(self) -> None:
        """The answer's body ends with the connection."""
        self._until_close = True

    def become_raw(self) -> None:
        """From the current head on, bytes are passed on as they are."""
        self._raw = True

    def pause(self) -> None:
        self._needed = False
        self._stop_reading()

    def resume(self) -> None:
        self._needed = True
        if self._waiting is None:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    def _stop_reading(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.transport.pause_reading()

    def _count_output(self, size: int) -> None:
        wait = self._rates.spend(self.key[0], size)
        if wait > 0 and self._waiting is None and not self._lost:
            self._stop_reading()
            self._waiting = asyncio.get_running_loop().call_later(wait, self._waited)

    def _waited(self) -> None:
        self._waiting = None
        if self._needed and not self._lost:
            self.resume()

    def close(self) -> None:
        """Ends it at once; what is not sent yet is dropped. The guest takes this as "the client went away"."""
        self.reader = None
        if not self._lost:
            self.transport.abort()

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape only
        transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        if self._rates.limited:
            self._count_output(len(data))
        if self.reader is None:
            self._dirty = True
            self.transport.abort()
            return
        if self._raw:
            self.reader.upstream_raw(data)
            return
        self._answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._raw and self.reader is not None:
                rest = data[upgrade.args[0] :]
                if rest:
                    self.reader.upstream_raw(rest)
                return
            self._dirty = True
        except httptools.HttpParserError as error:
            if not self._done:
                self._fail(self._failure or f"the sandbox's answer is not HTTP: {error}")
                return
            self._dirty = True
        if self._done and self.reader is not None:
            self.reader.upstream_done(self._keep_alive and not self._dirty and not self._until_close)

    def eof_received(self) -> bool:
        if self.reader is None:
            return False
        if self._raw:
            self.reader.upstream_eof()
            return True
        if self._until_close and not self._in_head and not self._done:
            self._done = True
            self.reader.upstream_done(False)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._waiting is not None:
            self._waiting.cancel()
        self._on_lost(self)
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.upstream_lost(self._failure, self._answered)

    def pause_writing(self) -> None:
        if self.reader is not None:
            self.reader.upstream_writable(False)

    def resume_writing(self) -> None:
        if self.reader is not None:
            self.reader.upstream_writable(True)

    def _fail(self, why: str) -> None:
        self._failure = why
        self._lost = True
        reader, self.reader = self.reader, None
        self.transport.abort()
        if reader is not None:
            reader.upstream_lost(why, True)

    # httptools' side. After `_done` everything is out of turn.

    def on_message_begin(self) -> None:
        if self._done:
            self._dirty = True
        self._reason = b""
        self._headers = []
        self._in_head = True

    def on_status(self, status: bytes) -> None:
        self._reason += status
        self._count(len(status))

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        self._count(len(name) + len(value))
        self._headers.append((name.lower(), value))

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) >= MAX_FIELDS:
            self._failure = "the head of the sandbox's answer is too large"
            raise BadHead(502, self._failure)

    def on_headers_complete(self) -> None:
        if self._done or self.reader is None:
            self._dirty = True
            return
        self._in_head = False
        status = self._parser.get_status_code()
        self._keep_alive = self._parser.should_keep_alive()
        try:
            ended = self.reader.upstream_head(status, self._reason, self._headers)
        except BadHead as bad:
            self._failure = bad.message
            raise
        if ended:
            self._done = True

    def on_body(self, chunk: bytes) -> None:
        if self._done:
            self._dirty = True
        elif self.reader is not None:
            self.reader.upstream_body(chunk)

    def on_message_complete(self) -> None:
        if not self._raw and self._parser.get_status_code() >= 200:
            self._done = True


class Pool:
    """Idle upstream connections by sandbox and port, the youngest taken first; opens new ones."""

    def __init__(self, clock: Callable[[], float], rates: OutputRates) -> None:
        self._clock = clock
        self._rates = rates
        self._idle: dict[tuple[str, int], list[UpstreamConnection]] = {}
        self._open: set[UpstreamConnection] = set()

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def take(self, sandbox_id: str, port: int, replayable: bool) -> UpstreamConnection | None:
        """An idle connection, or None: dial.

        A user program may close its side at any moment, so a request that must not be sent twice gets a new connection
        there; the guest keeps its side open longer than the pool keeps it.
        """
        if not replayable and port not in GUEST_PORTS:
            return None
        idle = self._idle.get((sandbox_id, port))
        while idle:
            connection = idle.pop()
            if connection.usable:
                connection.reused = True
                return connection
            connection.close()
        return None

    async def dial(self, route: Route, port: int) -> UpstreamConnection:
        """A new connection. Raises PortClosed, SandboxGone, OSError."""
        sock = await route.dial(port)
        try:
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection((route.sandbox_id, port), sock, self._lost, self._rates), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        self._open.add(connection)
        return connection

    def give(self, connection: UpstreamConnection) -> None:
        """Back to the idle ones, after a whole answer."""
        connection.release()
        connection.resume()
        idle = self._idle.setdefault(connection.key, [])
        if len(idle) >= MAX_IDLE_PER_PORT:
            connection.close()
            return
        connection.idle_since = self._clock()
        idle.append(connection)

    def sweep(self) -> None:
        """Closes what has been idle for too long."""
        self._rates.sweep()
        now = self._clock()
        for (_, port), idle in list(self._idle.items()):
            limit = GUEST_IDLE_S if port in GUEST_PORTS else USER_IDLE_S
            for connection in [c for c in idle if now - c.idle_since > limit]:
                connection.close()

    def close(self) -> None:
        """Closes every connection, idle or not."""
        for connection in list(self._open):
            connection.close()

    def _lost(self, connection: UpstreamConnection) -> None:
        self._open.discard(connection)
        idle = self._idle.get(connection.key)
        if idle is not None:
            with contextlib.suppress(ValueError):
                idle.remove(connection)
            if not idle:
                self._idle.pop(connection.key, None)
