"""Logs in control: what is kept on disk and for how long, and which entries a caller gets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.telemetry import logbook as module
from atoll.control.telemetry.log_query import LogQuery, select
from atoll.control.telemetry.logbook import Logbook
from atoll.model.logs import LogEntry, LogLevel
from atoll.node.log_tail import parse

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def _entry(number: int, message: str = "", level: LogLevel = LogLevel.INFO, at_ms: int | None = None) -> LogEntry:
    moment = NOW + timedelta(milliseconds=number if at_ms is None else at_ms)
    return LogEntry(number, moment, level, message or f"line {number}", {"logger": "process"})


def _ms(number: int) -> int:
    return round(NOW.timestamp() * 1000) + number


async def test_entries_come_back_as_they_were_told(tmp_path: Path) -> None:
    book = Logbook(tmp_path / "logs")
    told = [_entry(1, "sé\ncond \udcff"), _entry(2, level=LogLevel.ERROR)]
    book.append("i0001", told)
    assert await book.read("i0001") == told
    assert await book.read("i0002") == []
    assert (tmp_path / "logs").stat().st_mode & 0o077 == 0


async def test_what_is_told_twice_is_kept_once_also_by_the_next_server(tmp_path: Path) -> None:
    book = Logbook(tmp_path)
    book.append("i0001", [_entry(1), _entry(2)])
    book.append("i0001", [_entry(2), _entry(3)])
    Logbook(tmp_path).append("i0001", [_entry(1), _entry(2), _entry(3), _entry(4)])
    assert [entry.number for entry in await book.read("i0001")] == [1, 2, 3, 4]


async def test_a_log_takes_two_segments_at_most_and_keeps_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT", 10_000)
    book = Logbook(tmp_path)
    for number in range(1, 1001):
        book.append("i0001", [_entry(number, "x" * 100)])
    assert sum(file.stat().st_size for file in list(tmp_path.iterdir())) < 21_000  # noqa: ASYNC240
    kept = [entry.number for entry in await book.read("i0001")]
    assert kept == list(range(kept[0], 1001))
    book.append("i0001", [_entry(1000), _entry(1001)])
    assert (await Logbook(tmp_path).read("i0001"))[-1].number == 1001


async def test_a_line_that_a_crash_cut_does_not_hide_the_others(tmp_path: Path) -> None:
    book = Logbook(tmp_path)
    book.append("i0001", [_entry(1)])
    with (tmp_path / "i0001.jsonl").open("ab") as file:
        file.write(b"[2, 17")
    assert [entry.number for entry in await Logbook(tmp_path).read("i0001")] == [1]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "", ".", "I0001"])
async def test_an_id_that_is_none_names_no_file(tmp_path: Path, name: str) -> None:
    book = Logbook(tmp_path / "logs")
    book.append(name, [_entry(1)])
    assert await book.read(name) == []
    assert not (tmp_path / "logs").exists()


async def test_old_logs_are_forgotten(tmp_path: Path) -> None:
    book = Logbook(tmp_path)
    book.append("i0001", [_entry(1)])
    assert await book.forget(datetime.now(UTC) - timedelta(days=1)) == 0
    assert await book.forget(datetime.now(UTC) + timedelta(days=1)) == 1
    assert await book.read("i0001") == []
    assert await Logbook(tmp_path / "none").forget(NOW) == 0


def test_forward_begins_at_the_cursor_and_backward_ends_there() -> None:
    entries = [_entry(number) for number in range(1, 10)]
    assert [e.number for e in select(entries, LogQuery(_ms(4), limit=3))] == [4, 5, 6]
    assert [e.number for e in select(entries, LogQuery(_ms(4), backward=True, limit=3))] == [4, 3, 2]
    assert [e.number for e in select(entries, LogQuery(backward=True, limit=2))] == [9, 8]
    assert select(entries, LogQuery(limit=0)) == []


def test_the_level_is_a_minimum_and_the_search_is_case_sensitive() -> None:
    entries = [_entry(n, f"Line {n}", level) for n, level in enumerate(LogLevel, 1)]
    assert [e.level.value for e in select(entries, LogQuery(level=LogLevel.WARN))] == ["warn", "error"]
    assert [e.number for e in select(entries, LogQuery(search="Line 3"))] == [3]
    assert select(entries, LogQuery(search="line 3")) == []


@given(limit=st.integers(1, 7), level=st.sampled_from(LogLevel), backward=st.booleans())
def test_pages_by_cursor_lose_nothing(limit: int, level: LogLevel, backward: bool) -> None:
    levels = list(LogLevel)
    entries = [_entry(n, level=levels[n % 4], at_ms=n) for n in range(1, 40)]
    seen: list[int] = []
    cursor = None
    while page := select(entries, LogQuery(cursor, backward, level, limit=limit)):
        fresh = [one.number for one in page if one.number not in seen]
        if not fresh:
            break
        seen += fresh
        cursor = _ms(seen[-1]) + (-1 if backward else 1)
    wanted = [one.number for one in entries if one.level.reaches(level)]
    assert sorted(seen) == wanted


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr).map(str.encode)
)
def test_a_line_from_inside_that_is_no_entry_is_dropped(line: bytes) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    "line",
    [
        b'{"n":true,"t":1,"l":"info","m":"x"}',
        b'{"n":1,"t":99999999999999999999,"l":"info","m":"x"}',
        b'{"n":1,"t":1,"l":"fatal","m":"x"}',
        b'{"n":1,"t":1,"l":"info","m":5}',
        b'{"n":0,"t":1,"l":"info","m":"x"}',
        b"[" * 100_000,
    ],
)
def test_an_entry_with_a_wrong_field_is_dropped(line: bytes) -> None:
    assert parse(line) is None


def test_an_entry_from_inside_is_cut_to_size() -> None:
    entry = parse(b'{"n":1,"t":1000,"l":"info","m":"%b","f":{"a":"b","c":3}}' % (b"x" * 100_000))
    assert entry is not None
    assert len(entry.message) <= 8192
    assert entry.fields == {"a": "b"}
    assert entry.at == datetime.fromtimestamp(1, UTC)
