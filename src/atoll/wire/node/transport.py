"""Where a node listens and how control reaches it.

Unix socket   on one machine: packets with descriptors; who may connect is decided by the peer's user id
TLS           between machines: both sides show a certificate of the same authority; the first message says what
              the connection is for: `control`, or `dial` to one port of a sandbox, whose bytes follow
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import ssl
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from atoll.model.errors import AtollError, NodeUnreachable, PlatformError
from atoll.model.tasks import OwnedTasks
from atoll.wire.channel import Channel, ChannelClosed, StreamChannel
from atoll.wire.node.client import Connect
from atoll.wire.node.codec import error_from_json, error_to_json
from atoll.wire.node.server import NodeServer
from atoll.wire.unix import accepting, bind, connect

_PIECE = 1 << 16
_PURPOSE_WITHIN_S = 10.0
_CONNECT_WITHIN_S = 10.0
_DIALLED_WITHIN_S = 20.0
_GONE_AFTER_S = 30
"""Without an answer of the other machine's kernel, a connection to it is over: a process may be slow, that is not."""


@asynccontextmanager
async def listening_unix(path: Path, server: NodeServer, users: Set[int]) -> AsyncIterator[None]:
    """Serves processes of `users` (host user ids) on the socket `path` within the block. Raises OSError."""
    with contextlib.closing(bind(path)) as listener:
        try:
            async with accepting(listener, server.serve, users):
                yield
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


def unix(path: Path) -> Connect:
    """Connects to the node that listens on `path`."""
    return functools.partial(connect, path)


# Other machines


@asynccontextmanager
async def listening_tls(sock: socket.socket, server: NodeServer, context: ssl.SSLContext) -> AsyncIterator[None]:
    """Serves peers with the right certificate on the bound `sock` within the block. Raises OSError."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = StreamChannel(reader, writer)
        _watch_machine(writer)
        try:
            async with asyncio.timeout(_PURPOSE_WITHIN_S):
                purpose = (await channel.receive()).body
            if purpose.get("purpose") == "control":
                await server.serve(channel)
            else:
                await _serve_dial(server, purpose, channel, reader, writer)
        except (ChannelClosed, TimeoutError, OSError):
            pass
        finally:
            channel.close()

    listener = await asyncio.start_server(
        serve, sock=sock, ssl=context, limit=_PIECE, ssl_handshake_timeout=_PURPOSE_WITHIN_S
    )
    try:
        yield
    finally:
        listener.close()


async def _serve_dial(
    server: NodeServer,
    purpose: dict[str, Any],
    channel: StreamChannel,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> None:
    try:
        inside = await server.dial(str(purpose.get("sandbox_id")), int(purpose.get("port", 0)))
    except (AtollError, ValueError, TypeError) as error:
        known = error if isinstance(error, AtollError) else PlatformError("malformed dial")
        await channel.send({"error": error_to_json(known)})
        return
    await channel.send({"ok": None})
    await _join(reader, writer, inside)


class TlsNode:
    """A node at `host`, whose certificate must name it: `connect` and `dial` for a RemoteNode. Ends with `aclose`."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self._address = host, port
        self._context = context
        self._relays = OwnedTasks()

    async def connect(self) -> Channel:
        """See Connect."""
        channel = StreamChannel(*await self._open())
        await channel.send({"purpose": "control"})
        return channel

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """See Dial."""
        try:
            reader, writer = await self._open()
            channel = StreamChannel(reader, writer)
            try:
                async with asyncio.timeout(_DIALLED_WITHIN_S):
                    await channel.send({"purpose": "dial", "sandbox_id": sandbox_id, "port": port})
                    answer = (await channel.receive()).body
                if "error" in answer:
                    raise error_from_json(answer["error"])
            except BaseException:
                channel.close()
                raise
        except (OSError, ChannelClosed) as error:
            raise NodeUnreachable(f"the node of sandbox {sandbox_id!r} does not answer: {error}") from error
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._relays.start(_join(reader, writer, theirs))
        return ours

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._address
        async with asyncio.timeout(_CONNECT_WITHIN_S):  # a TimeoutError is an OSError
            reader, writer = await asyncio.open_connection(host, port, ssl=self._context, limit=_PIECE)
        _watch_machine(writer)
        return reader, writer

    async def aclose(self) -> None:
        """Cuts what it relays."""
        await self._relays.aclose()


def _watch_machine(writer: asyncio.StreamWriter) -> None:
    """A machine that is gone says nothing, and nobody would notice: the kernel asks it, and ends the connection."""
    sock = writer.get_extra_info("socket")
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _GONE_AFTER_S // 3),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _GONE_AFTER_S // 6),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_AFTER_S * 1000),
    ):
        sock.setsockopt(level, option, value)


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sock: socket.socket) -> None:
    """Copies both ways until either side ends; takes over `sock`. TLS has no half-closed connections."""
    loop = asyncio.get_running_loop()

    async def outwards() -> None:
        while piece := await loop.sock_recv(sock, _PIECE):
            writer.write(piece)
            await writer.drain()

    async def inwards() -> None:
        while piece := await reader.read(_PIECE):
            await loop.sock_sendall(sock, piece)

    ways = [asyncio.create_task(outwards()), asyncio.create_task(inwards())]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        sock.close()
        writer.close()
