"""Nodes as an operator sees and changes them over REST: on a control plane in this process, with the fake tier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import pytest_asyncio

from atoll.control.placement import NodeState
from atoll.control.store.keys import Team
from support.control import World, plane


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with plane(tmp_path) as made:
        yield made


async def test_a_node_is_shown_with_what_it_holds_and_what_its_machine_has(world: World) -> None:
    await world.create()
    (node,) = (await world.client.get("/nodes")).json()
    assert (node["id"], node["status"], node["createSuccesses"], node["createFails"]) == ("local", "ready", 1, 0)
    metrics = node["metrics"]
    assert metrics["allocatedCPU"] == 2
    assert metrics["allocatedMemoryBytes"] == 1024 << 20
    assert 0 < metrics["memoryUsedBytes"] < metrics["memoryTotalBytes"]
    assert 0 < metrics["disks"][0]["usedBytes"] <= metrics["disks"][0]["totalBytes"]
    one = (await world.client.get("/nodes/local")).json()
    assert one.keys() == node.keys()
    assert (await world.client.get("/nodes/local/images")).json() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nodes/other", None, 404),
        ("POST", "/nodes/other", {"status": "draining"}, 404),
        ("POST", "/nodes/local", {"status": "standby"}, 409),
        ("POST", "/nodes/local", {"status": "asleep"}, 400),
        ("POST", "/nodes/local", {}, 400),
        ("PUT", "/nodes/local", {"host": "h", "port": 1}, 400),
        ("PUT", "/nodes/x%2Fy", {"host": "h", "port": 1}, 400),
        ("PUT", "/nodes/a", {"host": "h", "port": 70000}, 400),
        ("PUT", "/nodes/a", {"host": "h", "port": 1}, 409),
        ("DELETE", "/nodes/local", None, 409),
        ("DELETE", "/nodes/other", None, 404),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
async def test_what_cannot_be_is_refused(world: World, method: str, path: str, body: object, status: int) -> None:
    response = await world.client.request(method, path, json=body)
    assert response.status_code == status, response.text
    assert response.json()["message"]


async def test_a_drained_node_takes_nothing_new_also_after_a_restart(tmp_path: Path) -> None:
    async with plane(tmp_path) as world:
        assert (await world.client.post("/nodes/local", json={"status": "draining"})).status_code == 204
        assert (await world.client.get("/nodes/local")).json()["status"] == "draining"
        refused = await world.client.post("/v2/sandboxes", json={"templateID": "base"})
        assert refused.status_code == 429, "nothing new begins there"
    async with plane(tmp_path) as world:
        assert (await world.client.get("/nodes/local")).json()["status"] == NodeState.DRAINING.value
        assert (await world.client.post("/nodes/local", json={"status": "ready"})).status_code == 204
        await world.create()
        figures = (await world.client.get("/metrics")).text
        assert 'atoll_node_events_total{type="undrained"} 1.0' in figures
        events = (await world.client.get("/events/sandboxes?types=node.lifecycle.draining")).json()
        assert [one["eventData"] for one in events] == [{"node_id": "local"}]


async def test_a_node_that_drains_by_itself_is_not_made_ready_from_afar(world: World) -> None:
    world.node.drain()
    async with asyncio.timeout(20):
        while (await world.client.get("/nodes/local")).json()["status"] != "draining":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    refused = await world.client.post("/nodes/local", json={"status": "ready"})
    assert refused.status_code == 409
    assert "start it again" in refused.text


async def test_nodes_are_the_operators(world: World) -> None:
    await world.store.keys.add_team(Team("other", "other", datetime(2030, 1, 1, tzinfo=UTC)))
    headers = {"X-API-Key": (await world.services.keys.add("other", "k")).key}
    for method, path, body in (
        ("GET", "/nodes", None),
        ("GET", "/nodes/local", None),
        ("POST", "/nodes/local", {"status": "draining"}),
        ("PUT", "/nodes/a", {"host": "h", "port": 1}),
        ("DELETE", "/nodes/local", None),
        ("GET", "/nodes/local/images", None),
    ):
        response = await world.client.request(method, path, json=body, headers=headers)
        assert response.status_code == 403, (method, path, response.text)
