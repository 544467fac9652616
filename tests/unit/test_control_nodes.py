"""What control knows of its nodes, by their words and their silence; none is waited for on behalf of another."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import pytest_asyncio

from atoll.control.nodes import registry
from atoll.control.nodes.registry import GONE_AFTER_S, LEASE_S, LOST_AFTER_S, SILENT_AFTER_S, NodeRegistry
from atoll.control.placement import NodeState
from atoll.control.plane import ControlPlane
from atoll.control.sandboxes import reconciliation
from atoll.control.store import Store
from atoll.control.templates import catalog
from atoll.edge.routes import LiveRoutes
from atoll.model.errors import NodeUnreachable, StorageFull
from atoll.model.node_addresses import LOCAL
from atoll.model.sandbox import EndReason
from atoll.model.seams import NodeStatus
from atoll.node.supervisor import Supervisor
from atoll.wire.node import client as client_side
from atoll.wire.node import server as server_side
from atoll.wire.node.client import RemoteNode
from atoll.wire.node.server import NodeServer
from atoll.wire.node.transport import listening_unix, unix
from support.control import API_KEY, application, supervisor
from support.databases import migrated_sqlite


class _Named(RemoteNode):
    """A client that was never connected: enough for who only keeps it."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id


def _registry() -> tuple[NodeRegistry, list[float], list[tuple[str, str]]]:
    now, told = [0.0], list[tuple[str, str]]()
    nodes = NodeRegistry(lambda: now[0])
    nodes.returned = lambda node_id: told.append(("returned", node_id))
    nodes.gone = lambda node_id: told.append(("gone", node_id))
    return nodes, now, told


def test_a_node_is_ready_from_its_first_word_and_silent_without_beats() -> None:
    nodes, now, told = _registry()
    assert nodes.state("a") is NodeState.SILENT
    nodes.registered(_Named("a"), NodeStatus(3, load=0.5))
    (load,) = nodes.loads()
    assert (load.sandboxes, load.state, load.load) == (3, NodeState.READY, 0.5)
    now[0] += SILENT_AFTER_S - 1
    nodes.beat("a", NodeStatus(9))
    now[0] += SILENT_AFTER_S - 1
    assert nodes.state("a") is NodeState.READY
    assert nodes.loads()[0].sandboxes == 9, "another control process has made some too"
    now[0] += 1
    assert nodes.state("a") is NodeState.SILENT
    nodes.look()
    told.clear()
    nodes.beat("a", NodeStatus(0))
    assert nodes.state("a") is NodeState.READY
    assert told == [("returned", "a")]


def test_a_lost_connection_is_silence_at_once_and_another_ends_it() -> None:
    nodes, _, told = _registry()
    nodes.registered(_Named("a"), NodeStatus(0))
    nodes.lost("a")
    assert nodes.is_silent("a")
    assert nodes.worth_asking().keys() == {"a"}, "there is no other"
    nodes.registered(_Named("b"), NodeStatus(0))
    assert nodes.worth_asking().keys() == {"b"}
    nodes.registered(_Named("a"), NodeStatus(0))
    assert nodes.worth_asking().keys() == {"a", "b"}
    assert told == [("returned", "a"), ("returned", "b"), ("returned", "a")]


def test_who_drains_stays_draining_until_it_says_otherwise() -> None:
    nodes, _, _ = _registry()
    nodes.registered(_Named("a"), NodeStatus(0, draining=True))
    assert nodes.state("a") is NodeState.DRAINING
    nodes.lost("a")
    assert nodes.state("a") is NodeState.DRAINING, "it was stopped in order: nobody waits for it"
    nodes.registered(_Named("a"), NodeStatus(0))
    assert nodes.state("a") is NodeState.READY


def test_long_silence_is_the_end_of_it_also_for_one_that_never_came() -> None:
    nodes, now, told = _registry()
    nodes.registered(_Named("a"), NodeStatus(0))
    nodes.expect("a")
    nodes.expect("b")
    with pytest.raises(NodeUnreachable):
        nodes.client("b")
    told.clear()
    now[0] += GONE_AFTER_S - 1
    nodes.look()
    assert told == []
    now[0] += 1
    nodes.look()
    assert sorted(told) == [("gone", "a"), ("gone", "b")]
    assert nodes.find("a") is None
    assert nodes.loads() == []


def test_what_is_silent_for_long_is_lost_until_it_speaks() -> None:
    nodes, now, _ = _registry()
    lost = list[str]()
    nodes.given_up = lost.append
    nodes.registered(_Named("a"), NodeStatus(0))
    now[0] += LOST_AFTER_S - 1
    nodes.look()
    assert not nodes.is_lost("a")
    now[0] += 1
    nodes.look()
    nodes.look()
    assert (nodes.is_lost("a"), lost) == (True, ["a"])
    nodes.beat("a", NodeStatus(0))
    assert not nodes.is_lost("a")
    assert LOST_AFTER_S > LEASE_S + 2, "by then a node's lease is over, and what it runs stands still"


def test_the_servers_own_node_has_no_lease_and_is_never_lost() -> None:
    nodes, now, told = _registry()
    lost = list[str]()
    nodes.given_up = lost.append
    nodes.registered(_Named(LOCAL), NodeStatus(0, at=7.0))
    assert nodes.last_word(LOCAL) == 7.0
    now[0] += GONE_AFTER_S - 1
    nodes.look()
    assert (nodes.is_silent(LOCAL), nodes.is_lost(LOCAL), lost) == (True, False, [])
    now[0] += 1
    nodes.look()
    assert told[-1] == ("gone", LOCAL)


# Two nodes on one control plane


class _Registry(NodeRegistry):
    """Without the heartbeats of those that hang: in one process their loop is everybody's."""

    def __init__(self, hanging: set[str]) -> None:
        super().__init__()
        self._hanging = hanging

    def beat(self, node_id: str, status: NodeStatus) -> None:
        if node_id not in self._hanging:
            super().beat(node_id, status)


class _Server(NodeServer):
    """Answers nothing while its node hangs."""

    def __init__(self, node: Supervisor, hanging: set[str]) -> None:
        super().__init__(node)
        self._name, self._hanging = node.node_id, hanging

    async def call(self, name: str, received: object) -> object:
        while self._name in self._hanging:  # noqa: ASYNC110 - as a loop that stands still
            await asyncio.sleep(0.01)
        return await super().call(name, received)


@dataclass
class _Control:
    nodes: NodeRegistry
    api: httpx.AsyncClient

    async def create(self) -> str:
        response = await self.api.post("/v2/sandboxes", json={"templateID": "base"})
        assert response.status_code == 201, response.text
        return str(response.json()["sandboxID"])

    async def kill(self, sandbox_id: str) -> int:
        return (await self.api.delete(f"/sandboxes/{sandbox_id}")).status_code

    async def events(self, kind: str) -> set[str]:
        """To which sandboxes that has happened."""
        found = (await self.api.get(f"/events/sandboxes?types=sandbox.lifecycle.{kind}")).json()
        return {one["sandboxId"] for one in found}

    async def listed(self) -> set[str]:
        return {one["sandboxID"] for one in (await self.api.get("/v2/sandboxes")).json()}


class _World:
    """Two nodes that outlive the control planes on them."""

    def __init__(self, place: Path, agents: dict[str, Supervisor]) -> None:
        self.place = place
        self.agents = agents
        self.hanging: set[str] = set()
        self.listening: dict[str, AsyncExitStack] = {}

    async def listen(self, name: str) -> None:
        agent, stack = self.agents[name], AsyncExitStack()
        server = _Server(agent, self.hanging)
        await stack.enter_async_context(listening_unix(self.place / f"{name}.sock", server, {os.getuid()}))
        agent.subscribe(server)
        agent.subscribe_routes(server)
        self.listening[name] = stack

    async def stop_listening(self, name: str) -> None:
        await self.listening.pop(name).aclose()

    @asynccontextmanager
    async def control(self) -> AsyncIterator[_Control]:
        nodes = _Registry(self.hanging)
        async with AsyncExitStack() as stack:
            for name in self.agents:
                connect = unix(self.place / f"{name}.sock")
                client = RemoteNode(connect, presence=nodes, is_waited_for=name in self.listening)
                await stack.enter_async_context(client)
            store = await stack.enter_async_context(Store(migrated_sqlite(self.place)))
            plane = ControlPlane(
                store=store,
                nodes=nodes,
                logs_dir=self.place / "logs",
                metrics_dir=self.place / "metrics",
                templates_dir=self.place / "templates",
                routes=LiveRoutes(),
            )
            await stack.enter_async_context(plane)
            transport = httpx.ASGITransport(stack.enter_context(application(plane.services, store)))
            api = httpx.AsyncClient(transport=transport, base_url="http://control", headers={"X-API-Key": API_KEY})
            yield _Control(nodes, await stack.enter_async_context(api))

    def on(self, name: str) -> set[str]:
        return {sandbox_id for sandbox_id, _ in self.agents[name].live}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[_World]:
    async with supervisor(tmp_path / "1", node_id="one") as one, supervisor(tmp_path / "2", node_id="two") as two:
        made = _World(tmp_path, {"one": one, "two": two})
        for name in made.agents:
            await made.listen(name)
        yield made
        for name in list(made.listening):
            await made.stop_listening(name)


async def _until(reached: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await reached():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.01)


async def test_sandboxes_go_where_fewest_are_and_never_to_a_node_that_drains(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_side, "BEAT_S", 0.02)
    async with world.control() as control:
        made = [await control.create() for _ in range(4)]
        assert len(world.on("one")) == len(world.on("two")) == 2
        world.agents["one"].drain()
        await _until(_is(lambda: control.nodes.state("one") is NodeState.DRAINING))
        made += [await control.create() for _ in range(3)]
        assert (len(world.on("one")), len(world.on("two"))) == (2, 5)
        world.agents["two"].drain()
        await _until(_is(lambda: control.nodes.state("two") is NodeState.DRAINING))
        refused = await control.api.post("/v2/sandboxes", json={"templateID": "base"})
        assert refused.status_code == 429
        assert "no node can take" in refused.text
        assert [await control.kill(one) for one in made] == [204] * 7, "what runs there goes on to its end"


async def test_what_a_node_does_not_take_goes_to_another_and_is_refused_only_if_nobody_takes_it(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise StorageFull("the disk is full")

    async with world.control() as control:
        monkeypatch.setattr(world.agents["one"], "_disk", SimpleNamespace(check_room=full))
        made = {await control.create() for _ in range(3)}
        assert made == world.on("two")
        headers = {"Idempotency-Key": "k"}
        once = [await control.api.post("/v2/sandboxes", json={"templateID": "base"}, headers=headers) for _ in "12"]
        assert [answer.status_code for answer in once] == [201, 201]
        assert once[0].json()["sandboxID"] == once[1].json()["sandboxID"], "the key is the one that was made's"
        monkeypatch.setattr(world.agents["two"], "_disk", SimpleNamespace(check_room=full))
        refused = await control.api.post("/v2/sandboxes", json={"templateID": "base"})
        assert (refused.status_code, "disk is full" in refused.text) == (507, True)
        monkeypatch.undo()

        # One answers nothing, and nobody knows it yet: its sandbox is made elsewhere, and what it makes later is ended.
        monkeypatch.setattr(client_side, "LONG_ANSWER_WITHIN_S", 5.0)
        world.hanging.add("one")
        async with asyncio.timeout(60):
            assert await control.create() in world.on("two"), "one has fewest"
        monkeypatch.undo()
        world.hanging.discard("one")
        await _until(_is(lambda: not world.on("one")))
        for sandbox_id in await control.listed():
            assert await control.kill(sandbox_id) == 204


async def test_a_teams_group_is_kept_apart(world: _World) -> None:
    async with world.control() as control:
        for _ in range(3):
            await control.create()
        fewest = min(("one", "two"), key=lambda name: len(world.on(name)))
        body = {"templateID": "base", "metadata": {"atoll.spread": "replicas"}}
        made = []
        for _ in range(2):
            made.append((await control.api.post("/v2/sandboxes", json=body)).json()["sandboxID"])
            await world.agents["one" if fewest == "two" else "two"].kill(await control.create(), EndReason.KILLED)
        assert len({name for name in ("one", "two") for one in made if one in world.on(name)}) == 2


def _is(claim: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return claim()

    return look


async def test_a_node_that_hangs_blocks_neither_a_start_nor_the_other(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "SILENT_AFTER_S", 1.5)
    monkeypatch.setattr(registry, "LOST_AFTER_S", 1000.0)  # what is lost nobody waits for any more
    monkeypatch.setattr(server_side, "BEAT_S", 0.05)
    async with world.control() as control:
        mine = {await control.create() for _ in range(4)}
        world.hanging.add("one")
        await _until(_is(lambda: control.nodes.is_silent("one")))
        async with asyncio.timeout(60):
            more = {await control.create() for _ in range(4)}
            assert more <= world.on("two"), "the other takes all"
            assert await control.kill(more.pop()) == 204
            there = (await control.api.get("/templates")).json()
            assert there
            some = next(iter(world.on("two")))
            answer = await control.api.get(f"/sandboxes/{some}/metrics")
            assert answer.status_code == 200
            lost = next(iter(mine & world.on("one")))
            monkeypatch.setattr(client_side, "LONG_ANSWER_WITHIN_S", 0.5)
            assert await control.kill(lost) == 500, "its own sandboxes wait for it"
    monkeypatch.setattr(client_side, "LONG_ANSWER_WITHIN_S", 60.0)
    monkeypatch.setattr(reconciliation, "_ANSWER_WITHIN_S", 1.0)
    monkeypatch.setattr(catalog, "_ANSWER_WITHIN_S", 1.0)
    async with asyncio.timeout(60), world.control() as control:
        assert mine - {lost} <= await control.listed(), "what it runs is kept until it speaks"
        assert await control.create() in world.on("two")
        world.hanging.discard("one")
        await _until(_is(lambda: lost not in world.on("one")))
        assert await control.listed() == world.on("one") | world.on("two")
        for sandbox_id in await control.listed():
            assert await control.kill(sandbox_id) == 204


async def test_a_node_that_is_away_at_the_start_is_settled_when_it_comes_and_lost_when_it_does_not(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "LOST_AFTER_S", 1000.0)  # what is lost is listed no more
    async with world.control() as control:
        made = {await control.create() for _ in range(4)}
    ended = next(iter(world.on("two")))
    await world.stop_listening("two")
    await world.agents["two"].kill(ended, EndReason.KILLED)
    async with asyncio.timeout(60), world.control() as control:
        assert await control.listed() == made, "nobody can say what has become of them"
        assert await control.create() in world.on("one")
        await world.listen("two")
        await _until(_async(lambda: control.listed(), lambda listed: ended not in listed))
        assert await control.listed() == world.on("one") | world.on("two")
    await world.stop_listening("two")
    monkeypatch.setattr(registry, "GONE_AFTER_S", 0.1)
    async with asyncio.timeout(60), world.control() as control:
        await _until(_async(lambda: control.listed(), lambda listed: listed == world.on("one")))
        monkeypatch.undo()
        await world.listen("two")
        await _until(_is(lambda: not world.on("two")))  # it came back too late: what counts as lost is ended


def _async(ask: Callable[[], Awaitable[set[str]]], judge: Callable[[set[str]], bool]) -> Callable[[], Awaitable[bool]]:
    async def look() -> bool:
        return judge(await ask())

    return look


async def test_what_is_lost_is_not_shown_and_a_kill_of_it_holds_when_its_node_is_back(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "SILENT_AFTER_S", 1.5)
    monkeypatch.setattr(registry, "LOST_AFTER_S", 2.0)
    monkeypatch.setattr(server_side, "BEAT_S", 0.02)
    async with asyncio.timeout(60), world.control() as control:
        made = {await control.create() for _ in range(4)}
        gone = world.on("two")
        await world.stop_listening("two")
        await _until(_async(lambda: control.listed(), lambda listed: listed == made - gone))
        killed, kept = sorted(gone)
        answer = await control.api.get(f"/sandboxes/{kept}")
        assert (answer.status_code, "it is lost" in answer.text) == (404, True)
        assert await control.kill(killed) == 204
        monkeypatch.setattr(registry, "LOST_AFTER_S", 1000.0)
        monkeypatch.setattr(registry, "SILENT_AFTER_S", 1000.0)
        await world.listen("two")
        await _until(_is(lambda: killed not in world.on("two")))
        await _until(_async(lambda: control.listed(), lambda listed: listed == made - {killed}))
        await _until(_async(lambda: control.events("returned"), lambda found: found == {kept}))
        assert await control.events("lost") == gone


async def test_what_asks_for_it_is_begun_anew_elsewhere_and_the_earlier_one_ends(
    world: _World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "SILENT_AFTER_S", 1.5)
    monkeypatch.setattr(registry, "LOST_AFTER_S", 2.0)
    monkeypatch.setattr(server_side, "BEAT_S", 0.02)
    async with asyncio.timeout(60), world.control() as control:
        body = {"templateID": "base", "metadata": {"restart": "always"}}
        made = {(await control.api.post("/v2/sandboxes", json=body)).json()["sandboxID"] for _ in range(4)}
        moved = world.on("two")
        assert len(moved) == 2
        await world.stop_listening("two")
        await _until(_is(lambda: world.on("one") == made))
        await _until(_async(lambda: control.listed(), lambda listed: listed == made))
        assert world.on("two") == moved, "it does not know yet"
    # The control plane is started again, and meanwhile both have the same: the later one counts.
    await world.listen("two")
    async with asyncio.timeout(60), world.control() as control:
        await _until(_is(lambda: not world.on("two")))
        assert await control.listed() == world.on("one") == made
