"""Readings over time: taken regularly, bounded for ever, gone with the sandbox."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from atoll.control.metering import CAPACITY, EVERY_S, Meter, Reading, Series
from atoll.model.errors import SandboxGone
from atoll.model.sandbox import SandboxStats
from atoll.testing.clock import ManualClock

START = datetime(2030, 1, 1, tzinfo=UTC)
STATS = SandboxStats(12.5, 1000, 300, 1 << 30, 77, 1 << 40, 5)


def _series(seconds: int) -> Series:
    series = Series()
    for second in range(seconds):
        series.add(Reading(START + timedelta(seconds=second), replace(STATS, memory_used=second)))
    return series


def test_a_reading_comes_back_as_it_was_taken_but_for_the_processes() -> None:
    series = Series()
    series.add(Reading(START, STATS))
    assert series.last == Reading(START, replace(STATS, pids=None))
    series.add(Reading(START, replace(STATS, cpu_used_pct=None, memory_used=None, memory_cache=None, disk_used=None)))
    assert series.last is not None
    assert series.last.stats.memory_used is None


def test_a_long_life_is_told_from_its_beginning_in_bounded_memory() -> None:
    series = _series(50_000)
    assert len(series) <= CAPACITY
    told = [one.stats.memory_used for one in series.between(None, None)]
    assert told[0] == 0
    assert told[-1] == 49_999
    assert told == sorted(told)  # type: ignore[type-var]
    assert len(told) >= CAPACITY // 2


def test_a_span_of_time_includes_both_its_ends() -> None:
    at = int(START.timestamp())
    found = _series(10).between(at + 3, at + 5)
    assert [one.stats.memory_used for one in found] == [3, 4, 5]


async def test_every_live_sandbox_is_read_every_few_seconds_and_the_dead_are_forgotten() -> None:
    clock, live, reads = ManualClock(), ["a", "b"], []

    async def read(sandbox_id: str) -> SandboxStats:
        reads.append(sandbox_id)
        if sandbox_id == "b":
            raise SandboxGone("b")
        return STATS

    meter = Meter(clock, lambda: live, read)
    running = asyncio.create_task(meter.run())
    for _ in range(3):
        await clock.advance(EVERY_S)
    assert reads == ["a", "b"] * 3
    assert len(await meter.history("a")) == 3  # the last is fresh: no further reading
    await clock.advance(2)
    assert len(await meter.history("a")) == 4
    with pytest.raises(SandboxGone):
        await meter.history("b")
    live.remove("a")
    await clock.advance(EVERY_S)
    assert len(await meter.history("a")) == 1
    running.cancel()


async def test_a_reading_that_fails_does_not_end_the_readings() -> None:
    clock, count = ManualClock(), 0

    async def read(sandbox_id: str) -> SandboxStats:
        nonlocal count
        count += 1
        raise OSError("the machine is unwell")

    running = asyncio.create_task(Meter(clock, lambda: ["a"], read).run())
    await clock.advance(3 * EVERY_S)
    assert count == 3
    running.cancel()
