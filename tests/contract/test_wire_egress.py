"""Node and egress gateway over their socket: what one of them misses while it is away, it has when it is back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from atoll.egress import dns
from atoll.egress.budget import Budget
from atoll.egress.gateway import EgressContext
from atoll.egress.registry import EgressRegistry
from atoll.isolation.base import EgressSockets
from atoll.model.addresses import ForbiddenNetworks
from atoll.model.errors import InvalidRequest, PlatformError, SandboxGone
from atoll.model.network import NetworkPolicy
from atoll.tls import Authority
from atoll.wire import unix
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.egress import VERSION, client
from atoll.wire.egress.client import RemoteGateway
from atoll.wire.egress.server import GatewayServer

CLOSED = NetworkPolicy(allow_internet=False)
QUERY = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04good\x04test\x00\x00\x01\x00\x01"


class _Sandbox:
    """Its way out begins on this machine's loopback."""

    def __init__(self, sandbox_id: str = "i1") -> None:
        self.sandbox_id = sandbox_id
        self.held = EgressSockets(socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM))
        self.held.questions.bind(("127.0.0.1", 0))
        self.holder_is_reached = True

    async def egress_sockets(self) -> EgressSockets | None:
        if not self.holder_is_reached:
            raise PlatformError("cannot be taken over")
        return EgressSockets(self.held.connections.dup(), self.held.questions.dup())

    async def ask(self, within_s: float = 10.0) -> int:
        """The response code of a DNS question out of the sandbox. Raises TimeoutError: nobody answers."""
        with socket.socket(type=socket.SOCK_DGRAM) as program:
            program.setblocking(False)
            program.connect(self.held.questions.getsockname())
            program.send(QUERY)
            async with asyncio.timeout(within_s):
                return (await asyncio.get_running_loop().sock_recv(program, 512))[3] & 15

    async def is_answered(self) -> bool:
        with contextlib.suppress(TimeoutError):
            return await self.ask(0.3) == dns.REFUSED
        return False

    def close(self) -> None:
        self.held.connections.close()
        self.held.questions.close()


class _World:
    """A listener that stays, as the launcher's; gateways and nodes that come and go."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.listener = unix.bind(place / "egress.sock")
        self.authorities = 0

    def node(self) -> RemoteGateway:
        return RemoteGateway(functools.partial(unix.connect, self.place / "egress.sock"), self.authority)

    def authority(self) -> Authority:
        self.authorities += 1
        return Authority.kept_in(self.place / "tls", "egress")

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[EgressRegistry]:
        registry = EgressRegistry(EgressContext(ForbiddenNetworks, Budget(1000)))
        try:
            async with unix.accepting(self.listener, GatewayServer(registry).serve, {os.getuid()}):
                yield registry
        finally:
            await registry.aclose()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    made = _World(tmp_path)
    yield made
    made.listener.close()


@pytest.fixture
def sandbox() -> Iterator[_Sandbox]:
    with contextlib.closing(_Sandbox()) as made:
        yield made


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.001)


async def test_what_is_attached_is_served_until_it_is_detached(world: _World, sandbox: _Sandbox) -> None:
    node = world.node()
    async with world.gateway(), node.connected():
        assert await node.attach(sandbox, CLOSED) is True
        assert await sandbox.ask() == dns.REFUSED
        (record,) = await node.connections("i1")
        assert (record.protocol, record.name, record.allowed) == ("dns", "good.test", False)
        await node.update("i1", NetworkPolicy(dns_servers=()))
        assert await sandbox.ask() == dns.SERVFAIL, "the update is in force when it returns"
        await node.detach("i1")
        await node.detach("i1")
        assert not await sandbox.is_answered()
        assert await node.connections("i1") == []
        with pytest.raises(SandboxGone):
            await node.update("i1", CLOSED)


async def test_a_sandbox_is_attached_before_there_is_a_gateway_and_after_it_was_killed(
    world: _World, sandbox: _Sandbox
) -> None:
    node = world.node()
    async with node.connected():
        async with asyncio.timeout(5):
            assert await node.attach(sandbox, CLOSED) is True
        waiting = asyncio.create_task(sandbox.ask(20))
        async with world.gateway():
            assert await waiting == dns.REFUSED, "what came early waited in the queue"
        updating = asyncio.create_task(node.update("i1", NetworkPolicy(dns_servers=())))
        await asyncio.sleep(0.05)
        assert not updating.done(), "no policy is in force while nobody says so"
        async with world.gateway():
            await updating
            assert await sandbox.ask() == dns.SERVFAIL


async def test_a_gateway_outlives_its_node_and_forgets_what_ended_meanwhile(world: _World, sandbox: _Sandbox) -> None:
    with contextlib.closing(_Sandbox("i2")) as other:
        async with world.gateway() as registry:
            node = world.node()
            async with node.connected():
                await node.attach(sandbox, CLOSED)
                await node.attach(other, CLOSED)
                assert await other.ask() == await sandbox.ask() == dns.REFUSED
            assert await sandbox.ask() == dns.REFUSED, "nobody is cut off for want of a node"
            (before,) = registry.connections("i1")[:1]
            successor = world.node()
            await successor.attach(sandbox, NetworkPolicy(dns_servers=()))  # adopted before it speaks to the gateway
            async with successor.connected():
                await _until(lambda: not registry.connections("i2"))
                assert await sandbox.ask() == dns.SERVFAIL, "the policy of the new node"
                assert (await successor.connections("i1"))[0] == before, "it is the same exit"
            assert not await other.is_answered()


async def test_a_gateway_that_does_not_answer_keeps_nobody_waiting_but_for_an_update(
    world: _World, sandbox: _Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_WITHIN_S", 0.2)
    monkeypatch.setattr(client, "_SEND_WITHIN_S", 0.2)

    async def mute(channel: Channel) -> None:
        await channel.send({"hello": {"version": VERSION}})
        await asyncio.Event().wait()

    node = world.node()
    async with unix.accepting(world.listener, mute, {os.getuid()}), node.connected():
        await _until(node._connected.is_set)
        async with asyncio.timeout(20):
            for number in range(600):  # more than the socket holds
                await node.attach(sandbox, CLOSED)
                if number % 2:
                    await node.detach("i1")
            await node.attach(sandbox, CLOSED)
            with pytest.raises(PlatformError, match="does not answer"):
                await node.update("i1", NetworkPolicy(dns_servers=()))
            with pytest.raises(PlatformError, match="does not answer"):
                await node.connections("i1")
    async with world.gateway(), node.connected():
        assert await sandbox.ask() == dns.SERVFAIL, "the next gateway begins with the newest policy"


async def test_the_authority_is_brought_with_the_first_rule_and_to_every_gateway(
    world: _World, sandbox: _Sandbox
) -> None:
    node = world.node()
    ruled = NetworkPolicy(rules={"api.test": ({"X-Key": "k"},)})
    async with node.connected():
        async with world.gateway() as registry:
            await node.attach(sandbox, CLOSED)
            await node.connections("i1")
            with pytest.raises(OSError, match="authority"):
                registry._context.tls.server_context("api.test")
            await node.update("i1", ruled)
            registry._context.tls.server_context("api.test")
        async with world.gateway() as registry:
            await node.connections("i1")
            await _until(lambda: registry._context.tls._authority is not None)
    assert world.authorities == 1
    assert "PRIVATE" not in node.certificate()


async def test_a_node_that_cannot_fetch_the_sockets_leaves_the_gateway_what_it_has(
    world: _World, sandbox: _Sandbox
) -> None:
    """As an ordinary user's, which may not look into sandboxes of an earlier node."""
    with contextlib.closing(_Sandbox("i2")) as unknown:
        async with world.gateway():
            first, second = world.node(), world.node()
            async with first.connected():
                await first.attach(sandbox, CLOSED)
                await first.connections("i1")
            for one in (sandbox, unknown):
                one.holder_is_reached = False
                with pytest.raises(PlatformError):
                    await second.attach(one, NetworkPolicy(dns_servers=()))
            async with second.connected():
                await second.connections("i1")
                assert await sandbox.ask() == dns.SERVFAIL
                assert not await unknown.is_answered()
                with pytest.raises(PlatformError, match="was lost"):
                    await second.update("i2", CLOSED)


async def test_entries_that_were_never_checked_are_refused(world: _World, sandbox: _Sandbox) -> None:
    with pytest.raises(InvalidRequest, match="allowOut"):
        await world.node().attach(sandbox, NetworkPolicy(allow_out=("http://x",)))


@pytest.mark.parametrize(
    "message",
    [
        {"attach": "i9", "network": CLOSED.as_json()}, {"attach": "i9"}, {"update": "i1"}, {"only": 3}, {},
        {"update": "i1", "network": {}, "id": 1}, {"authority": {"certificate": "x", "key": "y"}}, {"authority": []},
    ],
    ids=str,
)  # fmt: skip
async def test_nonsense_ends_the_connection_and_harms_nobody(
    world: _World, sandbox: _Sandbox, message: dict[str, object]
) -> None:
    node = world.node()
    async with world.gateway(), node.connected():
        await node.attach(sandbox, CLOSED)
        assert await sandbox.ask() == dns.REFUSED
        near = await unix.connect(world.place / "egress.sock")
        assert (await near.receive()).body == {"hello": {"version": VERSION}}
        with open("/dev/null") as descriptor, contextlib.suppress(ChannelClosed):
            await near.send(message, (descriptor.fileno(),))
        with pytest.raises(ChannelClosed):
            await asyncio.wait_for(near.receive(), 20)
        near.close()
        await node.connections("i1")  # over another connection: the stranger had taken its place
        assert await sandbox.ask() == dns.REFUSED


async def test_no_descriptor_is_left_behind(world: _World, sandbox: _Sandbox) -> None:
    node = world.node()
    async with world.gateway(), node.connected():
        await node.attach(sandbox, CLOSED)
        await node.connections("i1")
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            with contextlib.closing(_Sandbox("i2")) as other:
                await node.attach(other, CLOSED)
                await node.attach(sandbox, CLOSED)
                await node.detach("i2")
        await node.connections("i1")
        await _until(lambda: len(os.listdir("/proc/self/fd")) <= before)
        assert await node.connections("i1") == []
