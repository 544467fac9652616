"""The guest's one way in: a Unix socket whose connections say first which port they mean.

ATOLL/1 <port>\\n  →  49983 envd, 49999 interpreter, 0 control (host only): HTTP served here
                  →  any other: relayed to 127.0.0.1 or ::1, after one byte: 0x00 connected, 0x01 refused
"""

from __future__ import annotations

import asyncio
import re
import socket
import weakref
from collections.abc import Mapping
from contextlib import suppress

from atoll.http1.server import Handler, HttpConnection
from atoll.model.tasks import OwnedTasks

_PREAMBLE = re.compile(rb"ATOLL/1 ([0-9]{1,5})\n")
_PREAMBLE_MAX = len(b"ATOLL/1 65535\n")
_PREAMBLE_TIMEOUT_S = 10.0
_BACKLOG = 1024
_LOOK_EVERY_S = 0.001
CONNECTED = b"\x00"
REFUSED = b"\x01"


class Connections:
    """Those that are open now."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self._of_host: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()

    def note(self, transport: asyncio.Transport) -> None:
        """A new one."""
        self._open.add(transport)

    def note_of_host(self, transport: asyncio.Transport) -> None:
        """It is one for the host's own orders."""
        self._of_host.add(transport)

    async def hang_up(self, within_s: float) -> None:
        """Ends all but the host's own, each once what was written to it has been sent; new ones are accepted as before.

        Returns when that is done, or after `within_s`: a client may not take what is sent.
        """
        ending = [one for one in self._open if one not in self._of_host]
        for transport in ending:
            transport.close()
        for _ in range(round(within_s / _LOOK_EVERY_S)):
            if not any(map(_is_open, ending)):
                break
            await asyncio.sleep(_LOOK_EVERY_S)

    async def cut(self) -> None:
        """Ends all at once; returns when the kernel has forgotten them."""
        while living := [one for one in self._open if _is_open(one)]:
            for transport in living:
                transport.abort()
            await asyncio.sleep(0)


class Transport:
    """Accepts connections and hands each to the server of its port."""

    def __init__(
        self, servers: Mapping[int, Handler], loop: asyncio.AbstractEventLoop, connections: Connections
    ) -> None:
        self._servers = servers
        self._loop = loop
        self._relays = OwnedTasks()
        self._server: asyncio.Server | None = None
        self.connections = connections

    async def start(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        self._server = await self._loop.create_unix_server(
            lambda: _Front(self, self._loop), sock=listener, backlog=_BACKLOG
        )

    def close(self) -> None:
        """Accepts no more. Idempotent."""
        if self._server is not None:
            self._server.close()

    async def shut(self) -> None:
        """`close`, and every connection is cut; returns when the kernel has forgotten them. `start` opens again."""
        self.close()
        self._server = None
        await self.connections.cut()

    def handler_of(self, port: int) -> Handler | None:
        return self._servers.get(port)

    def relay(self, transport: asyncio.Transport, port: int, early: bytes) -> None:
        """Connects a client to a port inside; its bytes wait in the socket until then."""
        self._relays.start(_relay(self._loop, transport, port, early))


def _is_open(transport: asyncio.Transport) -> bool:
    return bool(transport.get_extra_info("socket").fileno() != -1)


class _Front(asyncio.Protocol):
    """Reads the preamble, then gives the connection away."""

    def __init__(self, owner: Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._owner.connections.note(transport)
        self._timer = self._loop.call_later(_PREAMBLE_TIMEOUT_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        transport = self._transport
        assert transport is not None
        found = _PREAMBLE.match(self._buffer)
        if found is None:
            if b"\n" in self._buffer or len(self._buffer) >= _PREAMBLE_MAX:
                transport.abort()
            return
        port = int(found.group(1))
        rest = self._buffer[found.end() :]
        if self._timer is not None:
            self._timer.cancel()
        handler = self._owner.handler_of(port)
        if port == 0:
            self._owner.connections.note_of_host(transport)
        if handler is not None:
            connection = HttpConnection(handler, self._loop)
            transport.set_protocol(connection)
            connection.connection_made(transport)
            if rest:
                connection.data_received(rest)
        elif 0 < port < 65536:
            transport.pause_reading()
            self._owner.relay(transport, port, rest)
        else:
            transport.abort()


class _Pipe(asyncio.Protocol):
    """One side of a relayed connection; everything goes to `other`, at the pace of the slower."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Pipe | None = None
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        peer = self.other.transport if self.other is not None else None
        if self.other is None or self.other.ended:
            if peer is not None:
                peer.close()
            return False
        if peer is not None and not peer.is_closing():
            with suppress(OSError, NotImplementedError):
                peer.write_eof()
        return True  # the other direction may go on

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()
        self.transport = None

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        peer = self.other.transport if self.other is not None else None
        if peer is not None and not peer.is_closing():
            peer.resume_reading()


async def _relay(loop: asyncio.AbstractEventLoop, client: asyncio.Transport, port: int, early: bytes) -> None:
    inner = _Pipe()
    if not await _connect(loop, inner, port):
        if not client.is_closing():
            client.write(REFUSED)
            client.close()
        return
    outer = _Pipe()
    outer.transport, outer.other, inner.other = client, inner, outer
    target = inner.transport
    if client.is_closing() or target is None:
        if target is not None:
            target.abort()
        client.abort()
        return
    client.set_protocol(outer)
    client.write(CONNECTED)
    if early:
        target.write(early)
    client.resume_reading()


async def _connect(loop: asyncio.AbstractEventLoop, pipe: _Pipe, port: int) -> bool:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue  # no IPv6 here
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, (address, port))
        except OSError:
            sock.close()
            continue
        except BaseException:
            sock.close()
            raise
        await loop.create_connection(lambda: pipe, sock=sock)
        return True
    return False
