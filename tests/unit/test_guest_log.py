"""The guest's log: numbered, bounded in memory and in pace, whole lines."""

from __future__ import annotations

import asyncio
import io
import json

import pytest

from atoll.guest import log as guest_log
from atoll.guest.log import BUDGET, KEPT_BYTES, LINE_MAX, CellLog, CommandLog, GuestLog, Tee
from atoll.http1.server import Body, Headers, HttpError, Request
from atoll.wire.envd.process import DataEvent, EndEvent, ProcessConfig

SHELL = ProcessConfig(cmd="/bin/bash", args=["-l", "-c", "make all"])


def _messages(log: GuestLog, after: int = 0) -> list[str]:
    return [message for _, _, _, message, _ in log.after(after)]


def _request(query: dict[str, str]) -> Request:
    return Request("GET", "/logs", "/logs", query, Headers(), Body.of(b""))


def test_a_command_is_told_with_its_lines_and_its_end() -> None:
    log = GuestLog()
    command = CommandLog(log, 42, SHELL, "build")
    command.output(DataEvent(stdout=b"one\ntw"))
    command.output(DataEvent(stderr=b"oops\n"))
    command.output(DataEvent(stdout=b"o\nthree"))
    command.ended(EndEvent(exit_code=2, exited=True, status="exit status 2"))
    told = [(level, message, fields["event_type"]) for _, _, level, message, fields in log.after(0)]
    assert told == [
        ("info", "make all", "start"),
        ("info", "one", "stdout"),
        ("warn", "oops", "stderr"),
        ("info", "two", "stdout"),
        ("info", "three", "stdout"),
        ("warn", "exit status 2", "end"),
    ]
    assert all(fields["pid"] == "42" and fields["tag"] == "build" for *_, fields in log.after(0))
    assert [number for number, *_ in log.after(3)] == [4, 5, 6]
    assert log.after(6) == []


def test_a_cell_is_told_with_what_it_printed_and_what_it_failed_with() -> None:
    log = GuestLog()
    cell = CellLog(log, "c1", "python", "print(1)\n1 / 0")
    cell.line({"type": "stdout", "text": "on"})
    cell.line({"type": "stderr", "text": "careful\n"})
    cell.line({"type": "stdout", "text": "e\ntwo \udc80"})
    cell.line({"type": "result", "text": "a result", "is_main_result": True})
    cell.line({"type": "keepalive"})
    cell.line({"type": "error", "name": "ZeroDivisionError", "value": "division by zero", "traceback": "…"})
    cell.ended()
    told = [(level, message, fields["event_type"]) for _, _, level, message, fields in log.after(0)]
    assert told == [
        ("info", "print(1)\n1 / 0", "start"),
        ("warn", "careful", "stderr"),
        ("info", "one", "stdout"),
        ("info", "two ?", "stdout"),
        ("warn", "ZeroDivisionError: division by zero", "end"),
    ]
    assert {(fields["logger"], fields["context_id"]) for *_, fields in log.after(0)} == {("interpreter", "c1")}


def test_code_that_is_large_and_comes_often_does_not_push_all_else_out() -> None:
    log = GuestLog()
    log.note("info", "an early word")
    for _ in range(200):
        CellLog(log, "c1", "python", "x" * 100_000).ended()
    assert log.after(0)[0][3] == "an early word"


def test_what_is_typed_into_a_terminal_is_never_logged() -> None:
    log = GuestLog()
    CommandLog(log, 1, SHELL, None).output(DataEvent(pty=b"secret\n"))
    assert "secret" not in "".join(_messages(log))


def test_memory_is_bounded_whatever_is_logged() -> None:
    log = GuestLog()
    for number in range(20_000):
        log.note("info", f"{number} " + "x" * 100)
    kept = log.after(0)
    assert sum(len(entry[3]) for entry in kept) <= KEPT_BYTES
    assert kept[-1][0] == 20_000
    assert len(kept[0][3]) <= LINE_MAX


def test_a_line_without_an_end_does_not_grow() -> None:
    log = GuestLog()
    command = CommandLog(log, 1, SHELL, None)
    for _ in range(8):
        command.output(DataEvent(stdout=b"y" * 4000))
    assert max(len(message) for message in _messages(log)) <= LINE_MAX + 8


def test_a_flood_is_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(guest_log.time, "monotonic", lambda: now)
    log = GuestLog()
    command = CommandLog(log, 1, SHELL, None)
    for _ in range(10):
        command.output(DataEvent(stdout=b"z" * (BUDGET // 4 - 1) + b"\n"))
    assert _messages(log)[-1] == f"{6 * (BUDGET // 4)} bytes of output were left out of the log: too much at once"
    now = 101.0
    command.output(DataEvent(stdout=b"again\n"))
    assert _messages(log)[-1] == "again"


def test_bytes_that_are_no_text_do_not_harm() -> None:
    log = GuestLog()
    CommandLog(log, 1, SHELL, None).output(DataEvent(stdout=b"\xff\xfe\x00\n"))
    assert len(_messages(log)) == 2


def test_what_the_guest_prints_to_stderr_is_an_entry_too() -> None:
    log, stream = GuestLog(), io.StringIO()
    print("it failed", file=Tee(log, stream))
    assert [(entry[2], entry[3]) for entry in log.after(0)] == [("error", "it failed")]
    assert stream.getvalue() == "it failed\n"


async def test_the_host_reads_lines_of_json_from_where_it_stands() -> None:
    log = GuestLog()
    log.note("info", "first")
    log.note("error", "sécond")
    answer = await log.handle(_request({"after": "1"}))
    assert isinstance(answer.body, bytes)
    (line,) = answer.body.decode().splitlines()
    assert json.loads(line) | {"t": 0} == {"n": 2, "t": 0, "l": "error", "m": "sécond", "f": {"logger": "guest"}}
    for bad in ("-1", "x", "1" * 30, "²"):
        with pytest.raises(HttpError):
            await log.handle(_request({"after": bad}))


async def test_a_listener_gets_what_is_there_and_what_comes() -> None:
    log = GuestLog()
    log.note("info", "before")
    answer = await log.handle(_request({"follow": "1"}))
    stream = aiter(answer.body)  # type: ignore[arg-type]
    assert b"before" in await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    log.note("info", "after")
    assert b"after" in await asyncio.wait_for(waiting, 5)
    await stream.aclose()  # type: ignore[attr-defined]
    assert not log._listeners
