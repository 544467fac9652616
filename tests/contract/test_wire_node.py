"""A node as control knows it: one suite for every way to reach it, with the real guest behind (tier without a wall)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from atoll.edge.routes import LiveRoutes
from atoll.isolation.base import SandboxHandle
from atoll.model.errors import CreateFailed, NodeUnreachable, PlatformError, PortClosed, SandboxGone, TemplateNotFound
from atoll.model.logs import LogEntry
from atoll.model.sandbox import ENVD_PORT, EndReason, Limits, OomKill, SandboxSpec
from atoll.model.seams import NodeClient, NodeStatus
from atoll.node.supervisor import Supervisor
from atoll.tls import Authority
from atoll.tls.peers import control_identity, node_identity, peer_context
from atoll.wire.channel import MAX_MESSAGE, Channel, ChannelClosed, PacketChannel
from atoll.wire.node import VERSION
from atoll.wire.node import client as client_side
from atoll.wire.node import server as server_side
from atoll.wire.node.client import RemoteNode
from atoll.wire.node.server import NodeServer
from atoll.wire.node.transport import TlsNode, listening_tls, listening_unix, unix
from support.control import supervisor


async def _until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.001)


def _request(sandbox_id: str = "i0001", **env: str) -> SandboxSpec:
    return SandboxSpec(sandbox_id=sandbox_id, template_id="tid0", access_token="t", env_vars=env)


_HELLO = {"hello": {"version": VERSION, "node_id": "n", "status": {"sandboxes": 0}, "tiers": {}, "routes": []}}


class _Events:
    """What control hears; `refuse` makes it fail, as a control plane with a broken store would."""

    def __init__(self) -> None:
        self.ended: asyncio.Queue[tuple[str, EndReason]] = asyncio.Queue()
        self.logged: list[LogEntry] = []

    async def sandbox_ended(self, sandbox_id: str, reason: EndReason, detail: str) -> None:
        await self.ended.put((sandbox_id, reason))

    async def sandbox_out_of_memory(self, sandbox_id: str, victim: OomKill) -> None:
        raise NotImplementedError

    async def sandbox_logged(self, sandbox_id: str, entries: list[LogEntry]) -> None:
        self.logged += entries


class _Presence:
    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.statuses: list[NodeStatus] = []

    def registered(self, node: NodeClient, status: NodeStatus) -> None:
        self.told.put_nowait(("registered", node.node_id))
        self.statuses.append(status)

    def beat(self, node_id: str, status: NodeStatus) -> None:
        self.told.put_nowait(("beat", node_id))
        self.statuses.append(status)

    def lost(self, node_id: str) -> None:
        self.told.put_nowait(("lost", node_id))


@dataclass
class _World:
    agent: Supervisor
    server: NodeServer
    node: RemoteNode
    routes: LiveRoutes
    new_client: Callable[[], RemoteNode]
    channels: list[Channel]

    def handle(self, sandbox_id: str = "i0001") -> SandboxHandle:
        return self.agent.live.handle(sandbox_id)


async def _reach(
    stack: AsyncExitStack, way: str, server: NodeServer, place: Path
) -> tuple[Callable[[], RemoteNode], list[Channel]]:
    """Starts listening; makes clients. Every channel that they open is noted."""
    opened: list[Channel] = []
    if way == "unix":
        await stack.enter_async_context(listening_unix(place / "node.sock", server, {os.getuid()}))
        connect, dial = unix(place / "node.sock"), None
    else:
        authority = Authority.kept_in(place / "tls", "nodes")
        sock = stack.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0))))
        await stack.enter_async_context(
            listening_tls(sock, server, peer_context(node_identity(authority, ["localhost"], 1), server=True))
        )
        context = peer_context(control_identity(authority), server=False)
        peer = TlsNode("localhost", sock.getsockname()[1], context)
        stack.push_async_callback(peer.aclose)
        connect, dial = peer.connect, peer.dial

    async def noted() -> Channel:
        opened.append(await connect())
        return opened[-1]

    return lambda: RemoteNode(noted, dial=dial), opened


@pytest_asyncio.fixture(params=["unix", "tls"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[_World]:
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(supervisor(tmp_path / "data"))
        server = NodeServer(agent)
        agent.subscribe(server)
        agent.subscribe_routes(server)
        new_client, channels = await _reach(stack, request.param, server, tmp_path)
        node = await stack.enter_async_context(new_client())
        routes = LiveRoutes()
        node.subscribe_routes(routes)
        yield _World(agent, server, node, routes, new_client, channels)


async def _health(sock: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    with sock:
        await loop.sock_sendall(sock, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return await loop.sock_recv(sock, 100)


async def test_a_sandbox_is_made_reached_and_ended(world: _World) -> None:
    made = await world.node.create(_request())
    assert (made.sandbox_id, made.tier) == ("i0001", "fake")
    route = world.routes.find("i0001")  # there before the answer to the create
    assert route is not None
    assert route.envd_access_token == "t"
    assert (await _health(await route.dial(ENVD_PORT))).startswith(b"HTTP/1.1 204")
    assert [one.sandbox_id for one in await world.node.sandboxes()] == ["i0001"]
    assert (await world.node.stats("i0001")).memory_total == Limits().memory_mib << 20
    assert await world.node.kill("i0001", EndReason.KILLED) is True
    assert world.routes.find("i0001") is None
    assert await world.node.kill("i0001", EndReason.KILLED) is False


async def test_errors_arrive_as_what_they_are(world: _World) -> None:
    with pytest.raises(TemplateNotFound, match="'none' not found"):
        await world.node.create(replace(_request(), template_id="none"))
    with pytest.raises(CreateFailed, match="cannot be used"):
        await world.node.create(_request("../x"))
    with pytest.raises(SandboxGone) as gone:
        await world.node.stats("i9999")
    assert gone.value.sandbox_id == "i9999"
    with pytest.raises(SandboxGone):
        await world.node.dial("i9999", ENVD_PORT)
    await world.node.create(_request())
    with pytest.raises(PortClosed):
        await world.node.dial("i0001", 1)


async def test_templates_and_limits_are_told(world: _World) -> None:
    assert [one.template_id for one in await world.node.templates()] == [
        one.template_id for one in await world.agent.templates()
    ]
    assert list(world.node.unenforced("fake")) == list(world.agent.unenforced("fake"))
    assert set(world.node.unenforced("no such tier")) == {"cpu", "memory", "pids", "disk"}
    assert world.node.node_id == "local"


async def test_a_template_that_nobody_can_make_is_named(world: _World) -> None:
    with pytest.raises(TemplateNotFound, match="'none'"):
        await world.node.make_template("none", 1.0)


async def test_a_create_that_is_given_up_leaves_no_sandbox(world: _World) -> None:
    asking = asyncio.create_task(world.node.create(_request()))
    await _until(lambda: world.agent.live)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await _until(lambda: not world.agent.live)
    assert await world.node.sandboxes() == []


async def test_a_control_process_that_dies_during_a_create_leaves_no_sandbox(world: _World) -> None:
    asking = asyncio.create_task(world.node.create(_request()))
    await _until(lambda: world.agent.live)
    world.channels[-1].close()
    with pytest.raises(NodeUnreachable):
        await asking
    await _until(lambda: not world.agent.live)


async def test_a_death_is_told_once_control_listens_and_over_a_new_connection_if_need_be(world: _World) -> None:
    await world.node.create(_request())
    world.channels[-1].close()  # the death happens while nobody is connected, or just after
    await world.handle().kill()
    events = _Events()
    world.node.subscribe(events)
    async with asyncio.timeout(20):
        assert await events.ended.get() == ("i0001", EndReason.DIED)
    await _until(lambda: not world.server._unacknowledged)


async def test_what_is_logged_arrives_before_a_flush_returns(world: _World) -> None:
    events = _Events()
    world.node.subscribe(events)
    await world.node.create(_request())
    await world.node.flush_logs("i0001")
    before = len(events.logged)
    sock = await world.node.dial("i0001", ENVD_PORT)
    loop = asyncio.get_running_loop()
    body = b'{"process":{"cmd":"/bin/echo","args":["hello"]}}'
    envelope = b"\0" + len(body).to_bytes(4, "big") + body
    head = (
        b"POST /process.Process/Start HTTP/1.1\r\nHost: x\r\nX-Access-Token: t\r\nConnection: close\r\n"
        b"Content-Type: application/connect+json\r\nContent-Length: %d\r\n\r\n" % len(envelope)
    )
    with sock:
        await loop.sock_sendall(sock, head + envelope)
        while await loop.sock_recv(sock, 65536):
            pass
    await world.node.flush_logs("i0001")
    assert any(entry.message == "hello" for entry in events.logged[before:])


async def test_a_lost_connection_is_made_again_and_routes_stay(world: _World) -> None:
    await world.node.create(_request())
    presence = _Presence()
    world.node._presence = presence
    world.channels[-1].close()
    route = world.routes.find("i0001")
    assert route is not None
    assert (await _health(await route.dial(ENVD_PORT))).startswith(b"HTTP/1.1 204")
    async with asyncio.timeout(20):
        assert await presence.told.get() == ("lost", "local")
        assert await presence.told.get() == ("registered", "local")
    assert [one.sandbox_id for one in await world.node.sandboxes()] == ["i0001"]


async def test_a_node_registers_beats_and_says_that_it_drains(world: _World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_side, "BEAT_S", 0.01)
    presence = _Presence()
    await world.node.create(_request())
    async with asyncio.timeout(20), world.new_client() as second:
        second._presence = presence
        world.channels[-1].close()
        assert [await presence.told.get() for _ in range(3)] == [
            ("lost", "local"), ("registered", "local"), ("beat", "local"),
        ]  # fmt: skip
        assert presence.statuses[-1].sandboxes == 1
        assert not presence.statuses[-1].draining
        world.agent.drain()
        await _until(lambda: presence.statuses[-1].draining)
        await world.node.create(_request("i0002"))  # what was on its way is made all the same
        await _until(lambda: presence.statuses[-1].sandboxes == 2)


async def test_two_control_processes_see_the_same_node(world: _World) -> None:
    async with world.new_client() as second:
        routes = LiveRoutes()
        second.subscribe_routes(routes)
        await world.node.create(_request())
        assert await second.kill("i0001", EndReason.KILLED) is True
        await _until(lambda: world.routes.find("i0001") is None)


async def test_a_large_request_travels_and_an_immense_one_is_refused(world: _World) -> None:
    await world.node.create(_request(BIG="x" * 300_000))
    with pytest.raises(ValueError, match="too large"):
        await world.node.create(_request("i0002", BIG="x" * MAX_MESSAGE))
    assert [one.sandbox_id for one in await world.node.sandboxes()] == ["i0001"]


async def test_a_node_that_does_not_answer_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_side, "RECONNECT_WITHIN_S", 0.1)
    near, far = await _pair()

    async def connect() -> Channel:
        return near

    with pytest.raises(NodeUnreachable):
        async with RemoteNode(connect):
            raise AssertionError("nobody has said hello")
    near, far = await _pair()
    async with RemoteNode(connect, is_waited_for=False) as node:
        await far.send(_HELLO)
        asking = asyncio.create_task(node._ask("sandboxes", {}, 0.2))
        assert (await far.receive()).body["call"] == "sandboxes"
        with pytest.raises(NodeUnreachable, match="within"):
            await asking
        assert "cancel" in (await far.receive()).body, "it need not go on"
    far.close()


async def test_no_descriptor_is_left_behind(world: _World) -> None:
    await world.node.create(_request())
    route = world.routes.find("i0001")
    assert route is not None
    (await route.dial(ENVD_PORT)).close()
    before = len(os.listdir("/proc/self/fd"))
    for turn in range(60):
        dialling = asyncio.create_task(route.dial(ENVD_PORT))
        for _ in range(turn % 12):
            await asyncio.sleep(0)
        if turn % 2:
            dialling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await dialling).close()
    await _until(lambda: len(os.listdir("/proc/self/fd")) <= before + 2)


# Sides that do not keep to the protocol


async def _pair() -> tuple[PacketChannel, PacketChannel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    theirs.setblocking(False)
    return PacketChannel(ours), PacketChannel(theirs)


async def test_what_comes_while_nobody_receives_waits_and_keeps_nobody_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[None] = []
    usual = PacketChannel._on_readable

    def counted(channel: PacketChannel) -> None:
        turns.append(None)
        usual(channel)

    monkeypatch.setattr(PacketChannel, "_on_readable", counted)
    near, far = await _pair()
    receiving = asyncio.create_task(near.receive())
    await asyncio.sleep(0)
    receiving.cancel()
    for number in range(3):
        await far.send({"number": number})
    await asyncio.sleep(0.3)
    assert len(turns) == 1, "the loop does not turn over a socket that nobody reads"
    assert [(await near.receive()).body["number"] for _ in range(3)] == [0, 1, 2]
    receiving = asyncio.create_task(near.receive())
    await asyncio.sleep(0)
    await far.send({"number": 3})
    assert (await receiving).body["number"] == 3
    far.close()
    with pytest.raises(ChannelClosed):
        await near.receive()


@pytest.mark.parametrize("hello", [{"hello": {"version": VERSION + 1}}, {"hello": None}, {}, {"hello": "x"}])
async def test_a_node_of_another_version_is_refused_early(hello: dict[str, object]) -> None:
    near, far = await _pair()
    await far.send(hello)

    async def connect() -> Channel:
        return near

    with pytest.raises(PlatformError, match=f"this server {VERSION}"):
        async with RemoteNode(connect):
            raise AssertionError("it was taken")
    far.close()


@pytest.mark.parametrize(
    "lie",
    [
        {"id": 1, "ok": {"no": "sandbox"}}, {"id": 1, "ok": None}, {"id": 1}, {"id": 1, "error": 7},
        {"id": 1, "error": {"type": "SystemExit", "text": "x"}},
        {"id": 1, "error": {"type": "CreateFailed", "fields": 3}},
    ],
)  # fmt: skip
async def test_a_node_that_lies_is_an_error_of_the_platform(lie: dict[str, object]) -> None:
    near, far = await _pair()
    await far.send(_HELLO)

    async def connect() -> Channel:
        return near

    async with RemoteNode(connect) as node:
        asking = asyncio.create_task(node.create(_request()))
        await far.receive()
        for nonsense in ({"route": {}}, {"event": "no such"}, {"tiers": 3}, {"unroute": 4}, {"id": "x"}, {"seq": []}):
            await far.send(nonsense)  # type: ignore[arg-type]
        await far.send(lie)
        with pytest.raises(PlatformError):
            await asyncio.wait_for(asking, 10)
    far.close()


@pytest.mark.parametrize(
    "message",
    [
        {"call": "create", "id": 1, "args": {}}, {"call": "create", "id": 1, "args": {"request": {"sandbox_id": 5}}},
        {"call": "aclose", "id": 1, "args": {}}, {"call": "__init__", "id": 1}, {"call": "dial", "id": 1, "args": 3},
        {"id": 1}, {"ack": []}, {"cancel": {}}, {"call": None, "id": 1},
        {"call": "kill", "id": 1, "args": {"sandbox_id": 1}},
    ],
)  # fmt: skip
async def test_a_control_process_that_talks_nonsense_harms_nobody(tmp_path: Path, message: dict[str, object]) -> None:
    async with supervisor(tmp_path) as agent:
        server = NodeServer(agent)
        near, far = await _pair()
        serving = asyncio.create_task(server.serve(near))
        await far.receive()
        await far.send(message)
        await far.send({"call": "sandboxes", "id": "last", "args": {}})
        with contextlib.suppress(ChannelClosed):
            async with asyncio.timeout(10):
                while (answer := (await far.receive()).body).get("id") != "last":
                    assert "error" in answer
        far.close()
        await asyncio.wait([serving])
        assert await agent.sandboxes() == []


# Strangers

_KNOCK = """
import os, socket, sys
os.setgid(65534); os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(10)
s.connect(sys.argv[1])
print(len(s.recv(65536)))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="becoming another user takes root")
@pytest.mark.parametrize(("user", "heard"), [(65534, False), (0, True)])
async def test_only_the_users_that_were_named_may_speak(tmp_path: Path, user: int, heard: bool) -> None:
    async with supervisor(tmp_path / "data") as agent:
        path = Path("/tmp") / f"atoll-{os.getpid()}-{user}.sock"
        async with listening_unix(path, NodeServer(agent), {0}):
            path.chmod(0o666)  # so that nothing but the check keeps it out
            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", _KNOCK, path, str(user)], capture_output=True, text=True
            )
    assert (int(done.stdout or 0) > 0) is heard, done.stderr


async def test_a_peer_without_a_certificate_of_the_authority_is_not_heard(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        agent = await stack.enter_async_context(supervisor(tmp_path / "data"))
        ours, others = Authority.kept_in(tmp_path / "ours", "nodes"), Authority.kept_in(tmp_path / "others", "nodes")
        node = node_identity(ours, ["localhost"], 1)
        sock = stack.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0))))
        await stack.enter_async_context(listening_tls(sock, NodeServer(agent), peer_context(node, server=True)))

        async def reach(identity: str, expected_id: str = "local") -> None:
            peer = TlsNode("localhost", sock.getsockname()[1], peer_context(identity, server=False))
            async with RemoteNode(peer.connect, dial=peer.dial, expected_id=expected_id):
                pass

        await reach(control_identity(ours))  # the control: with the right one it is
        # Another authority's; and a node's own, with which it could give orders to another node.
        for identity in (control_identity(others), node):
            with pytest.raises(NodeUnreachable):
                await reach(identity)
        with pytest.raises(PlatformError, match="says that it is 'local'"):
            await reach(control_identity(ours), "another")
