"""Deadlines: kept in order, moved, forgotten, and noticed without looking at the clock in between."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from atoll.control.sandboxes.expiry import Expiry
from atoll.testing.clock import ManualClock


@asynccontextmanager
async def _running() -> AsyncIterator[tuple[ManualClock, Expiry, list[str]]]:
    clock = ManualClock()
    ended: list[str] = []
    expiry = Expiry(clock, ended.append)
    task = asyncio.create_task(expiry.run())
    await asyncio.sleep(0)
    try:
        yield clock, expiry, ended
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_sandbox_ends_at_its_deadline_and_not_before() -> None:
    async with _running() as (clock, expiry, ended):
        expiry.set("a", clock.now() + timedelta(seconds=10))
        await clock.advance(9.5)
        assert ended == []
        await clock.advance(0.5)
        assert ended == ["a"]


async def test_deadlines_come_in_their_own_order_not_in_that_of_setting() -> None:
    async with _running() as (clock, expiry, ended):
        for name, seconds in (("late", 30), ("early", 5), ("middle", 20)):
            expiry.set(name, clock.now() + timedelta(seconds=seconds))
        await clock.advance(40)
        assert ended == ["early", "middle", "late"]


async def test_an_earlier_deadline_interrupts_the_nap() -> None:
    async with _running() as (clock, expiry, ended):
        expiry.set("far", clock.now() + timedelta(hours=5))
        await clock.advance(1)
        expiry.set("near", clock.now() + timedelta(seconds=2))
        await clock.advance(2)
        assert ended == ["near"]


async def test_a_moved_deadline_holds_and_the_old_one_does_not() -> None:
    async with _running() as (clock, expiry, ended):
        start = clock.now()
        expiry.set("longer", start + timedelta(seconds=10))
        expiry.set("shorter", start + timedelta(seconds=100))
        expiry.set("longer", start + timedelta(seconds=50))
        expiry.set("shorter", start + timedelta(seconds=5))
        await clock.advance(20)
        assert ended == ["shorter"]
        await clock.advance(30)
        assert ended == ["shorter", "longer"]


async def test_a_forgotten_sandbox_is_never_ended() -> None:
    async with _running() as (clock, expiry, ended):
        expiry.set("a", clock.now() + timedelta(seconds=1))
        expiry.forget("a")
        expiry.forget("never known")
        await clock.advance(100)
        assert ended == []


async def test_each_deadline_is_told_once_even_when_set_twice_to_the_same_moment() -> None:
    async with _running() as (clock, expiry, ended):
        at = clock.now() + timedelta(seconds=1)
        expiry.set("a", at)
        expiry.set("a", at)
        await clock.advance(10)
        assert ended == ["a"]


async def test_a_deadline_in_the_past_ends_at_once() -> None:
    async with _running() as (clock, expiry, ended):
        expiry.set("a", clock.now() - timedelta(seconds=1))
        await clock.advance(0)
        assert ended == ["a"]


def test_stale_entries_do_not_hide_the_next_deadline() -> None:
    clock = ManualClock()
    expiry = Expiry(clock, lambda _: None)
    first, second = clock.now() + timedelta(seconds=1), clock.now() + timedelta(seconds=2)
    expiry.set("a", first)
    expiry.set("b", second)
    expiry.forget("a")
    assert expiry.next_deadline() == second
    assert expiry.take_due(first) == []
    assert expiry.take_due(second) == ["b"]
    assert expiry.next_deadline() is None


def test_moving_a_deadline_all_day_long_takes_no_more_and_more_memory() -> None:
    clock = ManualClock()
    expiry = Expiry(clock, lambda _: None)
    for second in range(10_000):
        expiry.set("a", clock.now() + timedelta(seconds=second))
    expiry.set("b", clock.now() + timedelta(seconds=1))
    assert len(expiry._heap) < 200
    assert expiry.next_deadline() == clock.now() + timedelta(seconds=1)
    assert expiry.take_due(clock.now() + timedelta(seconds=9_998)) == ["b"]
    assert expiry.take_due(clock.now() + timedelta(seconds=9_999)) == ["a"]
