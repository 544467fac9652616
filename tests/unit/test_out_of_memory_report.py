"""OOM kills: the kernel's line parsed, those counted but not seen, a flood summed up, and the wording."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.sandbox import LinuxSandbox
from atoll.isolation.linux.sys import kernel_log
from atoll.model.sandbox import Limits, OomKill, SandboxSpec
from atoll.node.oom import oom_note

LINE = (
    "4,1234,12107545842,-;Memory cgroup out of memory: Killed process 27836 ({name}) total-vm:118956kB, "
    "anon-rss:30336kB, file-rss:6648kB, shmem-rss:1024kB, UID:524288 pgtables:120kB oom_score_adj:500\n"
)


@pytest.mark.parametrize("name", ["python3", "a b) (c", "x\\x0a", "", "Killed process"])
def test_the_kernels_line_is_read_whatever_the_program_calls_itself(name: str) -> None:
    found = kernel_log.parse(LINE.format(name=name).encode())
    assert found == kernel_log.KilledForMemory(27836, 524288, name, (30336 + 1024) << 10)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no header at all",
        "6,1,1,-;python3[9]: segfault at 0 ip 0 sp 0 error 4",
        # A program's name opens many lines of the kernel's: 15 bytes of it are no report.
        "6,1,1,-;Memory cgroup o[9]: segfault",
        LINE.format(name="x").replace("Memory cgroup out", "x: Memory cgroup out"),
        LINE.format(name="x").replace("oom_score_adj:500", "oom_score_adj:500 and more"),
        LINE.format(name="x").replace("UID:524288", "UID:-1"),
    ],
)
def test_other_lines_are_not_taken_for_it(text: str) -> None:
    assert kernel_log.parse(text.encode()) is None


def test_what_belongs_to_the_record_is_not_part_of_the_line() -> None:
    record = LINE.format(name="py").encode() + b" SUBSYSTEM=cpu\n DEVICE=x\n"
    found = kernel_log.parse(record)
    assert found is not None
    assert found.name == "py"


def test_a_process_is_known_by_its_pid_inside_while_it_is_there() -> None:
    assert kernel_log.pid_inside(os.getpid(), os.getuid()) is not None
    assert kernel_log.pid_inside(os.getpid(), os.getuid() + 1) is None, "another user's: the number was used again"
    assert kernel_log.pid_inside(2**22 + 1, 0) is None


class _Sandbox(LinuxSandbox):
    tier = "test"
    enforced = frozenset()
    init_process = "its process"

    async def dial(self, port: int):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    async def _apply(self, limits: Limits) -> None:
        raise NotImplementedError

    def _inside(self) -> tuple[int, ...]:
        return ()

    async def _empty_group(self) -> bool:
        return True

    async def _how_it_ended(self, oom_kills: int | None) -> str:
        return "ended"


@pytest.fixture
def init_process() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


class _World:
    def __init__(self, place: Path, pid: int) -> None:
        (place / "base" / "g").mkdir(parents=True)
        (place / "state" / "upper").mkdir(parents=True)
        self.counter = place / "base" / "g" / "memory.oom_control"
        self.count(0)
        cgroups = Cgroups("base", {"memory": place}, None, frozenset())
        record = {"pid": pid, "group": "g"}
        spec = SandboxSpec("s", "base")
        self.sandbox = _Sandbox(spec, place / "state", record, os.pidfd_open(pid), cgroups, lambda _: None)
        self.told: list[OomKill] = []
        self.sandbox.on_oom(self.told.append)

    def count(self, kills: int) -> None:
        self.counter.write_text(f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")


@pytest.fixture
async def world(tmp_path: Path, init_process: int) -> _World:
    return _World(tmp_path, init_process)


async def test_a_seen_end_is_told_once(world: _World) -> None:
    world.count(1)
    world.sandbox.note_oom_kill(OomKill("python3", 7, 1 << 20))
    for _ in range(3):
        await world.sandbox.stats()
    assert world.told == [OomKill("python3", 7, 1 << 20)]


async def test_an_end_that_this_sandboxes_kernel_has_not_counted_is_anothers(world: _World) -> None:
    world.sandbox.note_oom_kill(OomKill("python3", 7, 1))
    assert world.told == []


async def test_what_was_counted_and_never_seen_is_told_without_a_name(world: _World) -> None:
    world.count(3)
    await world.sandbox.stats()
    assert world.told == [], "who saw it may be about to tell"
    await world.sandbox.stats()
    assert world.told == [OomKill(others=2)]
    await world.sandbox.stats()
    assert len(world.told) == 1


async def test_a_flood_is_summed_up(world: _World) -> None:
    world.count(1000)
    for number in range(1000):
        world.sandbox.note_oom_kill(OomKill("bomb", number, 1))
    assert len(world.told) == 10
    world.sandbox._oom_allowance = (0.0, 10.0)
    world.count(1001)
    world.sandbox.note_oom_kill(OomKill("bomb", 0, 1))
    assert world.told[-1] == OomKill("bomb", 0, 1, others=990)


async def test_a_server_that_takes_over_does_not_tell_what_was_before(world: _World) -> None:
    world.count(5)
    world.sandbox.forget_oom_kills()
    await world.sandbox.stats()
    await world.sandbox.stats()
    assert world.told == []


def test_the_words_say_who_it_was_as_far_as_is_known() -> None:
    note = oom_note(OomKill("python3", 7, 300 << 20, others=2))
    assert note["message"] == ("out of memory: the kernel ended python3 (process 7), which used 300 MiB; 2 more before")
    assert note["fields"]["process"] == "python3"
    assert oom_note(OomKill())["message"] == "out of memory: the kernel ended an unknown process"
