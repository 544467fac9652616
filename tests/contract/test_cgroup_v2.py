"""What we rely on of control groups version 2, tried on a real hierarchy, with whatever controllers it has here.

On a machine whose controllers are all used by version 1 the unified hierarchy is there and empty: groups, freezing,
threads and births behave there as anywhere.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.isolation.linux.cgroups.groups import Cgroups, Group
from support.host import requires

pytestmark = requires("root")

# In a thread of its own that has joined the group of descriptor argv[1]: starts `sleep`, tells its pid.
_STARTER = """
import os, sys, threading
def start():
    os.write(int(sys.argv[1]), b"0")
    print(os.posix_spawn("/bin/sleep", ["sleep", "60"], os.environ), flush=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
sys.stdin.read()
"""


def _mount() -> Path | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(point, os.W_OK):
            return Path(point)
    return None


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    mount = _mount()
    if mount is None:
        pytest.skip("no writable version 2 hierarchy is mounted here")
    made = Cgroups(f"atoll-test-{secrets.token_hex(4)}", {}, mount, frozenset())
    made.prepare()
    yield made
    made.remove_base()
    assert not (mount / made.base).exists()


@pytest.fixture
def group(cgroups: Cgroups) -> Iterator[Group]:
    made = cgroups.group("g")
    made.create()
    yield made
    assert made.remove(10)


def _eventually(claim: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _join(group: Group) -> None:
    for descriptor in group.join_descriptors():
        os.write(descriptor, b"0")
        os.close(descriptor)


def test_a_group_holds_stops_and_lets_go(group: Group) -> None:
    with subprocess.Popen(["sleep", "60"], preexec_fn=lambda: _join(group)) as process:
        try:
            assert group.processes() == {process.pid}
            assert not group.try_remove(), "somebody is in it"
            group.begin_freeze()
            assert _eventually(group.is_frozen)
            group.thaw()
            assert _eventually(lambda: not group.is_frozen())
        finally:
            process.kill()
    assert _eventually(lambda: not group.processes())


def test_a_frozen_process_dies_without_running_on(group: Group) -> None:
    with subprocess.Popen(["sleep", "60"], preexec_fn=lambda: _join(group)) as process:
        group.begin_freeze()
        assert _eventually(group.is_frozen)
        process.kill()
        group.thaw()
        assert process.wait(30) == -9


def test_what_a_thread_of_a_threaded_group_starts_is_born_there(group: Group) -> None:
    """The premise of the guest's reserve (docs/decisions/0022): its process stays outside."""
    assert group.v2 is not None
    users = group.v2 / "users"
    users.mkdir()
    (users / "cgroup.type").write_text("threaded")
    joining = os.open(users / "cgroup.threads", os.O_WRONLY)
    try:
        with subprocess.Popen(
            [sys.executable, "-c", _STARTER, str(joining)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[joining],
            preexec_fn=lambda: _join(group),
        ) as starter:
            assert starter.stdout is not None
            born = int(starter.stdout.readline())
            try:
                assert born in {int(one) for one in (users / "cgroup.threads").read_text().split()}
                assert starter.pid not in {int(one) for one in (users / "cgroup.threads").read_text().split()}
                assert {born, starter.pid} <= group.processes(), "both are the sandbox's"
            finally:
                os.kill(born, 9)
                starter.kill()
    finally:
        os.close(joining)
        assert _eventually(lambda: (users / "cgroup.threads").read_text() == "")
        users.rmdir()


def test_without_the_controller_the_sandbox_goes_without_the_reserve(cgroups: Cgroups) -> None:
    """Delegated to us without the right to enable it: the group is made all the same."""
    plain = cgroups.group("h")
    assert plain.v2 is not None
    if "pids" in (plain.v2.parent.parent / "cgroup.controllers").read_text().split():
        pytest.skip("this hierarchy has the controller")
    wanting = Group(plain.name, plain.v1, plain.v2, plain.v2_controllers, {}, plain.v2 / "users")
    wanting.create()
    try:
        assert wanting.users_descriptors() == []
        assert not (plain.v2 / "users").exists()
    finally:
        assert wanting.remove(10)
