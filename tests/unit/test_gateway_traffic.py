"""How much passes the gateway in a second: the count, and two joined pipes that keep to it."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from atoll.control.sandboxes.orders import Policy, network_rate
from atoll.egress.budget import Traffic
from atoll.egress.relay import Pipe
from atoll.model.errors import InvalidRequest
from atoll.model.network import NetworkPolicy


def test_what_comes_within_the_rate_never_waits_and_the_rest_waits_as_long_as_it_must() -> None:
    now = 0.0
    traffic = Traffic(1000, lambda: now)
    assert [traffic.spend(100), traffic.spend(150)] == [0.0, 0.0], "a quarter of a second's worth at once"
    assert traffic.spend(500) == pytest.approx(0.5)
    now = 10.0
    assert traffic.spend(250) == 0.0
    traffic.bytes_per_s = None
    assert traffic.spend(1 << 30) == 0.0


def test_a_call_may_ask_for_less_than_the_server_allows() -> None:
    key = "atoll.network_mib_s"
    assert network_rate({}, Policy()) is None
    assert network_rate({}, Policy(network_mib_s=7)) == 7
    assert network_rate({key: "3"}, Policy(network_mib_s=7)) == 3
    assert network_rate({key: "3"}, Policy()) == 3
    for wrong in ("8", "0", "-1", "1.5", "", "x", "1" * 20):
        with pytest.raises(InvalidRequest, match=key):
            network_rate({key: wrong}, Policy(network_mib_s=7))
    assert NetworkPolicy.from_json(NetworkPolicy(mib_s=3).as_json()).mib_s == 3
    older = NetworkPolicy().as_json()
    del older["mib_s"]
    assert NetworkPolicy.from_json(older).mib_s is None


async def _through(size: int, bytes_per_s: int | None) -> float:
    """Seconds that `size` bytes take from one end to the other, and that they arrive whole."""
    loop = asyncio.get_running_loop()
    traffic = Traffic(bytes_per_s, time.monotonic)
    (client, inside), (server, outside) = socket.socketpair(), socket.socketpair()
    for one in (client, server):
        one.setblocking(False)
    pipes = [Pipe(lambda: None, None, traffic.spend) for _ in range(2)]
    for pipe, end in zip(pipes, (inside, outside), strict=True):
        await loop.create_unix_connection(lambda pipe=pipe: pipe, sock=end)
    pipes[0].join(pipes[1])
    pipes[1].join(pipes[0])
    began = time.monotonic()

    async def send() -> None:
        await loop.sock_sendall(client, b"x" * size)
        client.shutdown(socket.SHUT_WR)

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        arrived = 0
        while piece := await loop.sock_recv(server, 1 << 16):
            arrived += len(piece)
    took = time.monotonic() - began
    pipes[0].abort()
    client.close()
    server.close()
    assert arrived == size
    return took


async def test_joined_pipes_keep_to_the_rate_and_lose_nothing() -> None:
    assert await _through(2 << 20, 1 << 20) > 1.0
    assert await _through(64 << 20, None) < 20.0
