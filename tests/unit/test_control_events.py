"""Lifecycle events and webhooks: what is told, in which order, signed, tried again, and to nobody else."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from atoll.control.events import journal
from atoll.control.events.dispatcher import AT_ONCE_PER_WEBHOOK, WebhookDispatcher
from atoll.control.events.outbound import Outbound
from atoll.control.events.retries import DELAYS_S, MAX_ATTEMPTS
from atoll.control.store import Store
from atoll.control.store.schema import deliveries
from atoll.model.events import Delivery, DeliveryState, EventType, Webhook
from atoll.model.sandbox import EndReason
from atoll.testing.clock import ManualClock
from support.control import World, plane
from support.receiver import LOOPBACK, opened, receiver

NOW = datetime(2030, 1, 1, tzinfo=UTC)
TEAM = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with plane(tmp_path, webhook_networks=LOOPBACK) as made:
        yield made


async def _events(world: World, path: str = "/events/sandboxes", count: int = 1, **query: Any) -> list[dict[str, Any]]:
    """Once there are so many."""
    async with asyncio.timeout(20):
        while True:
            response = await world.client.get(path, params=query)
            assert response.status_code == 200, response.text
            if len(response.json()) >= count:
                return response.json()
            await asyncio.sleep(0.01)


def _hook(url: str, **more: Any) -> dict[str, Any]:
    return {"name": "n", "url": url, "events": [one.value for one in EventType], "signatureSecret": "s3cret", **more}


async def test_a_life_is_told_from_its_creation_to_its_end(world: World) -> None:
    sandbox_id = await world.create(metadata={"who": "värde"})
    await world.client.post(f"/sandboxes/{sandbox_id}/timeout", json={"timeout": 500})
    await world.client.delete(f"/sandboxes/{sandbox_id}")
    told = await _events(world, f"/events/sandboxes/{sandbox_id}", 3, orderAsc="true")
    assert [one["type"].rpartition(".")[2] for one in told] == ["created", "updated", "killed"]
    assert {one["sandboxId"] for one in told} == {sandbox_id}
    assert {one["sandboxTeamId"] for one in told} == {TEAM}
    assert {one["sandboxBuildId"] for one in told} == {"00000000-0000-4000-8000-000000000000"}
    assert len({one["sandboxExecutionId"] for one in told}) == 1
    assert len({one["id"] for one in told}) == 3
    assert told[0]["eventData"] == {"sandbox_metadata": {"who": "värde"}}
    assert datetime.fromisoformat(told[1]["eventData"]["set_timeout"])
    assert told[2]["eventData"]["reason"] == "killed"
    assert told[2]["eventData"]["execution"]["vcpu_count"] == 2


async def test_events_come_newest_first_in_pages_by_type(world: World) -> None:
    ids = [await world.create() for _ in range(3)]
    everything = await _events(world, count=3)
    assert [one["sandboxId"] for one in everything] == ids[::-1]
    assert await _events(world, limit=1, offset=1) == everything[1:2]
    assert await _events(world, count=0, types="sandbox.lifecycle.killed") == []
    for wrong in ({"limit": 101}, {"limit": 0}, {"offset": -1}, {"types": "nonsense"}, {"orderAsc": "maybe"}):
        assert (await world.client.get("/events/sandboxes", params=wrong)).status_code == 400  # type: ignore[arg-type]
    assert await _events(world, "/events/sandboxes/NONE", count=0) == []


async def test_a_death_and_a_restart_are_told_too(tmp_path: Path) -> None:
    async with plane(tmp_path, keep=True) as world:
        sandbox_id = await world.create()
        await world.services.ending.ended_by_itself(sandbox_id, EndReason.DIED, "gone")
        told = await _events(world, f"/events/sandboxes/{sandbox_id}", 2)
        assert told[0]["eventData"]["reason"] == "died"
    async with plane(tmp_path, keep=False) as world:
        second = await world.create()
    async with plane(tmp_path) as world:  # what a clean stop ended was written down before it closed
        assert (await _events(world, f"/events/sandboxes/{second}", 2))[0]["type"] == "sandbox.lifecycle.killed"


async def test_a_webhook_gets_what_it_asked_for_signed(world: World) -> None:
    async with receiver() as target:
        made = await world.client.post("/events/webhooks", json=_hook(target.url, events=["sandbox.lifecycle.created"]))
        assert made.status_code == 201, made.text
        assert "s3cret" not in made.text
        sandbox_id = await world.create()
        await world.client.delete(f"/sandboxes/{sandbox_id}")
        await target.wait_for(1)
        headers, body = target.received[0]
        expected = base64.urlsafe_b64encode(hashlib.sha256(b"s3cret" + body).digest()).rstrip(b"=").decode()
        assert headers["e2b-signature"] == expected
        assert headers["e2b-signature-version"] == "v1"
        assert headers["e2b-webhook-id"] == made.json()["id"]
        assert json.loads(body)["sandboxId"] == sandbox_id
        log = await _events(world, f"/events/webhooks/{made.json()['id']}/deliveries")
        async with asyncio.timeout(10):
            while log[0]["state"] == "pending":
                log = await _events(world, f"/events/webhooks/{made.json()['id']}/deliveries")
        assert (log[0]["state"], log[0]["statusCode"], log[0]["attempts"]) == ("delivered", 200, 1)
        assert log[0]["id"] == headers["e2b-delivery-id"]
        assert len(log) == 1
        await _events(world, count=2)
        assert target.types == ["sandbox.lifecycle.created"]


async def test_what_is_sent_stands_once_however_many_webhooks_get_it(world: World) -> None:
    async with receiver() as target:
        for _ in range(3):
            await world.client.post("/events/webhooks", json=_hook(target.url))
        await world.create(metadata={"big": "x" * 10_000})
        await target.wait_for(3)
    rows = await world.store._database.read(select(deliveries.c.payload))
    assert [row["payload"] for row in rows] == ["", "", ""]
    assert {body["eventData"]["sandbox_metadata"]["big"] for body in target.bodies} == {"x" * 10_000}


async def test_deliveries_that_nobody_takes_do_not_pile_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_WAITING", 2)
    async with receiver(0) as target:
        for _ in range(3):
            await world.client.post("/events/webhooks", json=_hook(target.url))
        for _ in range(2):
            await world.create()
        await target.wait_for(2)
        assert len(await _events(world, count=2)) == 2, "the events themselves are all there"
    rows = await world.store._database.read(select(deliveries.c.delivery_id))
    assert len(rows) == 2


async def test_webhooks_are_kept_changed_and_removed(world: World) -> None:
    made = (await world.client.post("/events/webhooks", json=_hook("http://example.com/a"))).json()
    place = f"/events/webhooks/{made['id']}"
    assert (await world.client.get(place)).json() == made
    assert (await world.client.get("/events/webhooks")).json() == [made]
    changed = (await world.client.patch(place, json={"enabled": False, "url": "http://example.com/b"})).json()
    assert changed == made | {"enabled": False, "url": "http://example.com/b"}
    assert (await world.client.delete(place)).status_code == 200
    for method in ("get", "patch", "delete"):
        more = {"json": {}} if method == "patch" else {}
        assert (await getattr(world.client, method)(place, **more)).status_code == 404
    assert (await world.client.get("/events/webhooks")).json() == []


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"url": "http://169.254.169.254/"}, 403),
        ({"url": "http://192.168.1.1/"}, 403),
        ({"url": "ftp://example.com"}, 400),
        ({"events": []}, 400),
        ({"events": ["sandbox.lifecycle.invented"]}, 400),
        ({"name": ""}, 400),
        ({"signatureSecret": None}, 400),
    ],
)
async def test_a_webhook_that_cannot_be_is_refused(world: World, change: dict[str, Any], status: int) -> None:
    response = await world.client.post("/events/webhooks", json=_hook("http://example.com") | change)
    assert response.status_code == status, response.text
    assert response.json()["code"] == status


async def test_a_team_may_not_have_any_number_of_webhooks(world: World) -> None:
    answers = [(await world.client.post("/events/webhooks", json=_hook("http://e.example/"))) for _ in range(21)]
    assert [one.status_code for one in answers] == [201] * 20 + [429]


# The dispatcher, with time in hand


def _delivery(number: int = 0, webhook_id: str = "w1") -> Delivery:
    return Delivery(f"d{number}", webhook_id, "e", "t", '{"type":"x"}', DeliveryState.PENDING, 0, NOW, NOW)


def _webhook(url: str, webhook_id: str = "w1", enabled: bool = True) -> Webhook:
    return Webhook(webhook_id, TEAM, "n", url, enabled, (EventType.CREATED,), NOW, "secret")


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with Store(database_url) as opened:
        yield opened


async def _only(store: Store, **wanted: Any) -> Delivery:
    """The one delivery, once it is as wanted."""
    async with asyncio.timeout(20):
        while True:
            (found,) = await store.events.deliveries_of("w1", 10, 0)
            if all(getattr(found, name) == value for name, value in wanted.items()):
                return found
            await asyncio.sleep(0.005)


async def _pass_time(clock: ManualClock, enough: Callable[[], bool]) -> None:
    """In steps: the dispatcher asks a real database between its naps."""
    async with asyncio.timeout(30):
        while not enough():
            await clock.advance(20)
            await asyncio.sleep(0.01)


async def test_a_failed_delivery_is_tried_again_later_and_later_until_it_arrives(store: Store) -> None:
    clock = ManualClock(NOW)
    async with receiver(500, 0, 404, 200) as target, asyncio.TaskGroup() as tasks:
        await store.events.add_webhook(_webhook(target.url))
        await store.events.add_deliveries([_delivery()])
        running = tasks.create_task(WebhookDispatcher(store.events, clock, Outbound(opened(LOOPBACK))).run())
        for attempt in (1, 2, 3):
            waiting = await _only(store, attempts=attempt)
            assert waiting.state is DeliveryState.PENDING
            assert waiting.next_at is not None
            wait = (waiting.next_at - clock.now()).total_seconds()
            assert wait <= DELAYS_S[attempt - 1] * 1.2
            await clock.advance(max(0.0, wait - 1))
            assert len(target.received) == attempt
            await _pass_time(clock, lambda: len(target.received) > attempt)  # noqa: B023  (called in this turn)
        done = await _only(store, state=DeliveryState.DELIVERED)
        assert (done.attempts, done.status_code, done.error, done.next_at) == (4, 200, None, None)
        running.cancel()


async def test_in_the_end_it_is_given_up_and_the_log_says_why(store: Store) -> None:
    clock = ManualClock(NOW)
    async with receiver(503) as target, asyncio.TaskGroup() as tasks:
        await store.events.add_webhook(_webhook(target.url))
        await store.events.add_deliveries([_delivery()])
        running = tasks.create_task(WebhookDispatcher(store.events, clock, Outbound(opened(LOOPBACK))).run())
        for attempt in range(1, MAX_ATTEMPTS):
            await _only(store, attempts=attempt)
            await _pass_time(clock, lambda: len(target.received) > attempt)  # noqa: B023
        given_up = await _only(store, state=DeliveryState.FAILED)
        assert (given_up.attempts, given_up.status_code, given_up.error) == (MAX_ATTEMPTS, 503, "answered 503")
        running.cancel()


async def test_what_may_not_be_reached_or_is_disabled_is_given_up_at_once(store: Store) -> None:
    async with receiver() as target, asyncio.TaskGroup() as tasks:
        await store.events.add_webhook(_webhook(target.url))
        await store.events.add_deliveries([_delivery()])
        dispatcher = WebhookDispatcher(store.events, ManualClock(NOW), Outbound())
        running = tasks.create_task(dispatcher.run())
        refused = await _only(store, state=DeliveryState.FAILED)
        assert "not a public address" in (refused.error or "")
        await store.events.change_webhook(_webhook(target.url, enabled=False))
        await store.events.change_delivery(_delivery())
        dispatcher.wake()
        disabled = await _only(store, state=DeliveryState.FAILED, error="the webhook was disabled")
        assert disabled.attempts == 0
        assert target.received == []
        running.cancel()


async def test_a_slow_receiver_does_not_hold_up_the_others(store: Store) -> None:
    under_way: list[str] = []
    release = asyncio.Event()

    class Slow:
        async def post(self, url: str, headers: dict[str, str], body: bytes) -> int:
            under_way.append(url)
            if "slow" in url:
                await release.wait()
            return 200

    async with asyncio.TaskGroup() as tasks:
        await store.events.add_webhook(_webhook("http://slow/", "w0"))
        await store.events.add_webhook(_webhook("http://quick/", "w1"))
        await store.events.add_deliveries([_delivery(number, "w0") for number in range(20)])
        await store.events.add_deliveries([_delivery(99, "w1")])
        running = tasks.create_task(WebhookDispatcher(store.events, ManualClock(NOW), Slow()).run())
        await _only(store, state=DeliveryState.DELIVERED)
        assert under_way.count("http://slow/") == AT_ONCE_PER_WEBHOOK
        release.set()
        async with asyncio.timeout(20):
            while under_way.count("http://slow/") < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        running.cancel()


async def test_a_removed_webhook_takes_its_deliveries_along(store: Store) -> None:
    await store.events.add_webhook(_webhook("http://example.com"))
    await store.events.add_deliveries([_delivery()])
    assert await store.events.remove_webhook("w1")
    assert await store.events.due(NOW + timedelta(days=1), 10) == []


async def test_old_events_and_finished_deliveries_are_forgotten_and_waiting_ones_never(store: Store) -> None:
    await store.events.add_webhook(_webhook("http://example.com"))
    done = Delivery("d1", "w1", "e", "t", "{}", DeliveryState.DELIVERED, 1, NOW, finished_at=NOW)
    await store.events.add_deliveries([_delivery(0), done])
    await store.events.forget(NOW + timedelta(days=1), 10)
    assert [one.delivery_id for one in await store.events.deliveries_of("w1", 10, 0)] == ["d0"]
