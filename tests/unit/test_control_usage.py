"""What a team's sandboxes came to over time: at once and begun per second, counted from the store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from atoll.control.access.auth import DEFAULT_TEAM_ID
from atoll.control.access.teams import MAX_STRETCHES, step_for
from atoll.model.errors import CreateFailed
from atoll.testing.clock import ManualClock
from support.control import World, plane

START = datetime(2030, 1, 1, tzinfo=UTC)
PATH = f"/teams/{DEFAULT_TEAM_ID}/metrics"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
async def world(tmp_path: Path, database_url: str, clock: ManualClock) -> AsyncIterator[World]:
    async with plane(tmp_path, clock=clock, database_url=database_url) as made:
        yield made


async def _told(world: World, **query: object) -> list[dict[str, Any]]:
    response = await world.client.get(PATH, params={name: str(value) for name, value in query.items()})
    assert response.status_code == 200, response.text
    told: list[dict[str, Any]] = response.json()
    return told


def _at(seconds: int) -> int:
    return int(START.timestamp()) + seconds


async def test_sandboxes_at_once_and_begun_are_told_stretch_by_stretch(world: World, clock: ManualClock) -> None:
    first = await world.create(timeout=3600)
    await world.create(timeout=3600)
    await clock.advance(12)
    await world.client.delete(f"/sandboxes/{first}")
    await world.create(timeout=3600)
    await clock.advance(12)
    told = await _told(world, start=_at(0), end=_at(20))
    assert [one["timestampUnix"] - _at(0) for one in told] == [0, 5, 10, 15, 20]
    assert [one["concurrentSandboxes"] for one in told] == [2, 2, 2, 2, 2]
    assert [one["sandboxStartRate"] for one in told] == [0.4, 0, 0.2, 0, 0]
    assert datetime.fromisoformat(told[0]["timestamp"]) == START


async def test_a_span_that_begins_later_knows_what_ran_already(world: World, clock: ManualClock) -> None:
    first = await world.create(timeout=3600)
    await world.create(timeout=3600)
    await clock.advance(60)
    await world.client.delete(f"/sandboxes/{first}")
    await clock.advance(60)
    told = await _told(world, start=_at(50), end=_at(70))
    assert [one["concurrentSandboxes"] for one in told] == [2, 2, 2, 1, 1]
    assert {one["sandboxStartRate"] for one in told} == {0}


async def test_the_highest_of_each_figure_is_told(world: World, clock: ManualClock) -> None:
    await world.create(timeout=3600)
    await clock.advance(100)
    ids = [await world.create(timeout=3600) for _ in range(3)]
    await clock.advance(100)
    for sandbox_id in ids:
        await world.client.delete(f"/sandboxes/{sandbox_id}")
    await clock.advance(100)
    span = {"start": _at(0), "end": _at(300)}
    for metric, value in (("concurrent_sandboxes", 4), ("sandbox_start_rate", 3 / 5)):
        response = await world.client.get(f"{PATH}/max", params={"metric": metric, **span})
        assert response.json() == {
            "timestamp": (START + timedelta(seconds=100)).isoformat().replace("+00:00", "Z"),
            "timestampUnix": _at(100),
            "value": value,
        }


async def test_a_create_that_failed_was_no_sandbox(
    world: World, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(request: object) -> object:
        raise CreateFailed("no room")

    monkeypatch.setattr(world.node, "create", fail)
    assert (await world.client.post("/v2/sandboxes", json={"templateID": "base"})).status_code >= 500
    await clock.advance(10)
    assert {(one["concurrentSandboxes"], one["sandboxStartRate"]) for one in await _told(world)} == {(0, 0)}


async def test_without_a_span_it_is_the_last_day_and_never_more_than_is_remembered(
    world: World, clock: ManualClock
) -> None:
    long = 7 * 86400 + 600
    await clock.jump(long)
    now = _at(long)
    assert (await _told(world))[0]["timestampUnix"] == now - 86400
    everything = await _told(world, start=0)
    assert everything[0]["timestampUnix"] == now - 7 * 86400
    assert len(everything) <= MAX_STRETCHES
    assert await _told(world, start=now + 5, end=now + 50) == []
    assert await _told(world, start=0, end=_at(0)) == []


@pytest.mark.parametrize(
    "query",
    ["?start=5&end=4", "?start=-1", "?start=x", "/max", "/max?metric=x", "/max?metric=sandbox_start_rate&end=1"],
)
async def test_a_wrong_question_is_refused(world: World, query: str) -> None:
    assert (await world.client.get(PATH + query)).status_code == 400


async def test_another_teams_figures_are_not_told(world: World) -> None:
    for path in ("/teams/other/metrics", "/teams/other/metrics/max?metric=sandbox_start_rate"):
        assert (await world.client.get(path)).status_code == 403


@pytest.mark.parametrize(("span", "step"), [(0, 5), (3599, 5), (3600, 15), (86400, 300), (7 * 86400, 900)])
def test_stretches_are_as_short_as_they_can_be(span: int, step: int) -> None:
    assert step_for(span) == step
    assert span // step < MAX_STRETCHES


async def test_figures_are_told_while_the_stores_own_thread_is_busy(tmp_path: Path, clock: ManualClock) -> None:
    """SQLite's: PostgreSQL is asked on the loop, through connections of its own."""
    async with plane(tmp_path, clock=clock) as world:
        await _while_busy(world)


async def _while_busy(world: World) -> None:
    await world.create()
    busy, let_go = threading.Event(), threading.Event()

    def hold(_connection: object) -> None:
        busy.set()
        let_go.wait()

    held = asyncio.ensure_future(world.store._database.run(hold))
    try:
        await asyncio.to_thread(busy.wait)
        second = int(START.timestamp())
        (stretch,) = await world.store.usage.stretches(DEFAULT_TEAM_ID, second, second, 5)
    finally:
        let_go.set()
        await held
    assert stretch.started == 1
