"""Readings over time: taken regularly, bounded for ever, kept over restarts, gone with the sandbox."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from atoll.control.telemetry.metering import EVERY_S, Meter
from atoll.control.telemetry.readings import CAPACITY, Reading, ReadingFiles, Series
from atoll.model.errors import SandboxGone
from atoll.model.sandbox import SandboxStats
from atoll.testing.clock import ManualClock

START = datetime(2030, 1, 1, tzinfo=UTC)
A, B = "i" + "a" * 19, "i" + "b" * 19
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


async def test_every_live_sandbox_is_read_every_few_seconds_and_the_dead_are_forgotten(tmp_path: Path) -> None:
    clock, live, reads = ManualClock(), [A, B], []

    async def read(sandbox_id: str) -> SandboxStats:
        reads.append(sandbox_id)
        if sandbox_id == B:
            raise SandboxGone(B)
        return STATS

    meter = Meter(clock, lambda: live, read, ReadingFiles(tmp_path))
    running = asyncio.create_task(meter.run())
    for _ in range(3):
        await clock.advance(EVERY_S)
    assert reads == [A, B] * 3
    assert len(await meter.history(A)) == 3  # the last is fresh: no further reading
    await clock.advance(2)
    assert len(await meter.history(A)) == 4
    with pytest.raises(SandboxGone):
        await meter.history(B)
    live.remove(A)
    await clock.advance(EVERY_S)
    assert len(await meter.history(A)) == 1
    running.cancel()


async def test_a_reading_that_fails_does_not_end_the_readings(tmp_path: Path) -> None:
    clock, count = ManualClock(), 0

    async def read(sandbox_id: str) -> SandboxStats:
        nonlocal count
        count += 1
        raise OSError("the machine is unwell")

    running = asyncio.create_task(Meter(clock, lambda: [A], read, ReadingFiles(tmp_path)).run())
    await clock.advance(3 * EVERY_S)
    assert count == 3
    running.cancel()


async def _read(_sandbox_id: str) -> SandboxStats:
    return STATS


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in directory.iterdir()}


def _meter(clock: ManualClock, directory: Path, *live: str) -> Meter:
    return Meter(clock, lambda: live, _read, ReadingFiles(directory))


async def test_a_server_that_was_killed_leaves_the_next_one_all_readings(tmp_path: Path) -> None:
    clock, directory = ManualClock(), tmp_path / "metrics"
    running = asyncio.create_task(_meter(clock, directory, A).run())
    await clock.advance(4 * EVERY_S)
    running.cancel()  # nothing more is written from here on, as after SIGKILL
    before = [one.at for one in ReadingFiles(directory).load(A).between(None, None)]
    assert len(before) == 4
    await clock.advance(60)
    again = (await _meter(clock, directory, A).history(A)).between(None, None)
    assert [one.at for one in again[:-1]] == before
    assert again[-1].at == clock.now()
    assert again[0].stats == replace(STATS, pids=None)


async def test_what_is_on_disk_is_bounded_and_tells_the_same(tmp_path: Path) -> None:
    clock = ManualClock()
    meter = _meter(clock, tmp_path, A)
    running = asyncio.create_task(meter.run())
    await clock.advance(2 * CAPACITY * EVERY_S)
    told = (await meter.history(A)).between(None, None)
    assert ReadingFiles(tmp_path).load(A).between(None, None) == told
    assert _sizes(tmp_path) == {f"{A}.readings": 8 + 56 * len(told)}
    assert len(told) <= CAPACITY
    running.cancel()


@pytest.mark.parametrize("cut", [1, 55])
def test_a_reading_that_was_cut_in_two_is_left_out_and_the_next_one_is_whole(tmp_path: Path, cut: int) -> None:
    files = ReadingFiles(tmp_path)
    series = _series(3)
    files.replace(A, series)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    loaded = files.load(A)
    assert len(loaded) == 2
    loaded.add(Reading(START, STATS))
    files.append(A, loaded)
    assert files.load(A).between(None, None) == loaded.between(None, None)


@pytest.mark.parametrize("garbage", [b"", b"ATOLL", b"something else altogether", b"ATOLL-R1"])
def test_a_file_that_is_none_of_ours_is_an_empty_past(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / f"{A}.readings").write_bytes(garbage)
    assert len(ReadingFiles(tmp_path).load(A)) == 0


async def test_the_past_of_sandboxes_that_ended_while_no_server_ran_is_removed(tmp_path: Path) -> None:
    files, clock = ReadingFiles(tmp_path), ManualClock()
    for sandbox_id in (A, B):
        files.replace(sandbox_id, _series(3))
    running = asyncio.create_task(_meter(clock, tmp_path, A).run())
    await clock.advance(0)
    assert list(_sizes(tmp_path)) == [f"{A}.readings"]
    running.cancel()


async def test_a_disk_that_takes_nothing_costs_no_reading(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of the directory")
    meter = _meter(ManualClock(), tmp_path / "file", A)
    assert len(await meter.history(A)) == 1
