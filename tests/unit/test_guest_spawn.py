"""Spawning as another user: what the program gets, and that the guest is itself again afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.guest.pid1.reaper import Exit
from atoll.guest.process.process import end_event
from atoll.guest.process.spawn import CwdMissing, spawn
from atoll.guest.process.users import User
from atoll.wire.envd.process import EndEvent

PATH = {"PATH": "/usr/bin:/bin"}
OTHER = User("other", 4321, 4322, (4322, 4400, 4401), "/", "/bin/sh")
SELF = User("me", os.getuid(), os.getgid(), (os.getgid(),), "/", "/bin/sh")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing to another user needs root")


@pytest.fixture(autouse=True)
def same_directory() -> Iterator[None]:
    here = Path.cwd()
    yield
    os.chdir(here)


def run(argv: list[str], user: User, cwd: str = "/") -> tuple[str, int]:
    read, write = os.pipe()
    try:
        pid = spawn(argv, user=user, env=PATH, cwd=cwd, stdout=write, stderr=write)
    finally:
        os.close(write)
    with os.fdopen(read) as output:
        text = output.read()
    return text, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def credentials() -> tuple[object, ...]:
    return os.getresuid(), os.getresgid(), os.getgroups()


@as_root
def test_the_program_has_the_users_ids_and_groups_and_no_way_back() -> None:
    before = credentials()
    text, _ = run(["sh", "-c", "grep -E '^(Uid|Gid|Groups)' /proc/self/status"], OTHER)
    found = {line.split(":")[0]: line.split(":")[1].split() for line in text.splitlines()}
    assert found["Uid"] == ["4321"] * 4
    assert found["Gid"] == ["4322"] * 4
    assert found["Groups"] == ["4322", "4400", "4401"]
    assert credentials() == before


@as_root
def test_the_directory_and_the_program_are_checked_with_the_users_rights(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    before = credentials()
    with pytest.raises(CwdMissing):
        run(["true"], OTHER, str(closed))
    program = closed / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    with pytest.raises(PermissionError):
        run([str(program)], OTHER)
    assert credentials() == before


@as_root
def test_children_are_offered_to_the_out_of_memory_killer_first() -> None:
    # The score is raised from outside right after the start: a program that is very quick may still see its old one.
    text, _ = run(["sh", "-c", "sleep 0.2; cat /proc/self/oom_score_adj"], OTHER)
    assert int(text) == 500


def test_a_program_is_found_in_the_path_of_its_own_environment(tmp_path: Path) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    pid = spawn(["mine"], user=SELF, env={"PATH": f"/nowhere::{tmp_path}"}, cwd="/")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with pytest.raises(FileNotFoundError):
        spawn(["mine"], user=SELF, env=PATH, cwd="/")


@pytest.mark.parametrize(
    ("how", "event"),
    [
        (Exit(0), EndEvent(exit_code=0, exited=True, status="exit status 0")),
        (Exit(7), EndEvent(exit_code=7, exited=True, status="exit status 7", error="exit status 7")),
        (Exit(-1, 9), EndEvent(exit_code=-1, exited=False, status="signal: killed", error="signal: killed")),
        (Exit(-1, 15), EndEvent(exit_code=-1, status="signal: terminated", error="signal: terminated")),
    ],
)
def test_an_end_is_told_in_the_words_that_clients_know(how: Exit, event: EndEvent) -> None:
    assert end_event(how) == event


def test_a_wait_status_is_read_as_code_or_signal() -> None:
    assert Exit.from_status(3 << 8) == Exit(3)
    assert Exit.from_status(9) == Exit(-1, 9)
