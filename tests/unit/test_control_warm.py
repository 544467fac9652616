"""Sandboxes that wait for a create, on the fake tier. With real servers inside: tests/integration/test_warm.py."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from atoll.control.sandboxes.orders import Policy
from atoll.model.sandbox import EndReason, Limits
from atoll.node.gpus import NodeGpus
from support.control import MemoryTemplates, World, plane

SMALL = Limits(cpu_count=1, memory_mib=1024, disk_mib=1024, pids=64)


def _policy(*, warm: int, fit: int) -> Policy:
    """Sandboxes of one size, of which so many wait and so many find room."""
    room = Limits(**{name: fit * getattr(SMALL, name) for name in Limits.__slots__})
    return Policy(maximum=SMALL, node=room, warm={"base": warm})


async def _there(world: World, count: int) -> set[str]:
    """The ids of all on the node, once they are so many."""
    async with asyncio.timeout(10):
        while len(found := {one.sandbox_id for one in await world.node.sandboxes()}) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


async def test_a_create_takes_the_one_that_waits_and_the_place_is_filled_again(tmp_path: Path) -> None:
    async with plane(tmp_path, policy=_policy(warm=1, fit=8)) as world:
        waiting = await _there(world, 1)
        listed = await world.client.get("/v2/sandboxes")
        assert listed.json() == []
        answer = await world.client.post("/v2/sandboxes", json={"templateID": "base", "envVars": {"A": "1"}})
        body = answer.json()
        assert {body["sandboxID"]} == waiting
        route = world.node.find(body["sandboxID"])
        assert route is not None
        assert route.envd_access_token == body["envdAccessToken"]
        assert len((await world.client.get("/v2/sandboxes")).json()) == 1
        (other,) = await _there(world, 2) - waiting
        open_to_all = {"network": {"allowPublicTraffic": False}}
        answer = await world.client.post("/v2/sandboxes", json={"templateID": "base", **open_to_all})
        assert answer.json()["sandboxID"] == other
        assert world.node.find(other).traffic_access_token == answer.json()["trafficAccessToken"]
        await _there(world, 3)


async def test_what_cannot_be_given_to_one_that_runs_is_made_anew(tmp_path: Path) -> None:
    async with plane(tmp_path, policy=_policy(warm=1, fit=8)) as world:
        waiting = await _there(world, 1)
        for count, more in enumerate(
            [
                {"metadata": {"atoll.pids": "32"}},
                {"metadata": {"atoll.no_new_privileges": "true"}},
                {"templateID": "team/other"},
            ]
        ):
            assert await world.create(**more) not in waiting
            assert waiting < await _there(world, count + 2)


async def test_one_that_has_ended_meanwhile_costs_the_caller_nothing(tmp_path: Path) -> None:
    async with plane(tmp_path, policy=_policy(warm=1, fit=8)) as world:
        (waiting,) = await _there(world, 1)
        await world.node.kill(waiting, EndReason.DIED)  # which control is not told of
        assert await world.create() != waiting
        await _there(world, 2)


async def test_those_that_wait_give_way_to_a_create_that_finds_no_room(tmp_path: Path) -> None:
    async with plane(tmp_path, policy=_policy(warm=3, fit=4)) as world:
        await _there(world, 3)
        other = {"metadata": {"atoll.pids": "32"}}
        made = {await world.create(**other) for _ in range(4)}
        assert await _there(world, 4) == made
        answer = await world.client.post("/v2/sandboxes", json={"templateID": "base"})
        assert answer.status_code == 429


async def test_one_that_waits_gives_its_gpu_to_a_create_that_needs_it(tmp_path: Path) -> None:
    edits = {"deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero"}]}
    devices = [{"name": "0", "containerEdits": edits}]
    (tmp_path / "gpu.json").write_text(
        json.dumps({"cdiVersion": "0.5.0", "kind": "example.org/gpu", "devices": devices})
    )
    policy = Policy(maximum=SMALL, warm={"base-gpu": 1})
    templates = MemoryTemplates(("base", "base-gpu"), gpu={"base-gpu": "1"})
    async with plane(tmp_path / "data", policy=policy, templates=templates, gpus=NodeGpus([tmp_path])) as world:
        (waiting,) = await _there(world, 1)
        made = await world.create(metadata={"atoll.gpu": "1"})
        assert made != waiting
        assert await _there(world, 1) == {made}
        order = {"templateID": "base", "metadata": {"atoll.gpu": "1"}}
        refused = await world.client.post("/v2/sandboxes", json=order)
        assert refused.status_code == 429
        assert "0 of 1 GPUs are free" in refused.text
