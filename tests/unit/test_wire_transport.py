"""Connections to a node on another machine end when that is gone or silent. Without TLS, which changes nothing."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import cast

import pytest

from atoll.model.errors import NodeUnreachable
from atoll.wire.node import transport
from atoll.wire.node.transport import TlsNode


async def test_a_dial_that_nobody_answers_ends_and_its_connection_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_DIALLED_WITHIN_S", 0.05)
    ended, watched = asyncio.Queue[None](), list[int]()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        ended.put_nowait(None)

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        node = TlsNode("127.0.0.1", server.sockets[0].getsockname()[1], cast(ssl.SSLContext, None))
        async with asyncio.timeout(20):
            with pytest.raises(NodeUnreachable, match="does not answer"):
                await node.dial("i1", 1)
            await ended.get()
        _, writer = await node._open()
        sock = writer.get_extra_info("socket")
        watched += [sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]
        watched += [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)]
        writer.close()
        async with asyncio.timeout(20):
            await ended.get()
        await node.aclose()
    assert watched == [1, 30_000], "the kernel asks whether its machine is there"
