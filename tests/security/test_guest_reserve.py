"""What the guest keeps for itself, whatever its users do: memory, processes, its place behind them when memory ends.

Every verdict is the host's: the guest's process, the kernel's counters, the scores that the host reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from atoll.isolation.base import BackendConfig, IsolationBackend
from atoll.isolation.linux.cgroups.groups import Group
from atoll.isolation.linux.sys import caps
from atoll.isolation.namespaces.handle import NamespacesHandle
from atoll.isolation.registry import load
from atoll.model.sandbox import Limits, SandboxPaths, SandboxSpec
from atoll.testing import inside
from support.host import requires

pytestmark = [requires("namespaces"), pytest.mark.timeout(180)]

LIMITS = Limits(cpu_count=1, memory_mib=192, pids=120)
BOUND = 500
"""Below which no process of a sandbox may lower its score."""

# As root, so that it may be many users: no user alone may have all processes.
ROOTS_BOMB = """
import os, time
for uid in range(20000, 20006):
    if os.fork() == 0:
        os.setuid(uid)
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.05)
time.sleep(600)
"""

# Many small ones, each with the lowest score it can get: the guest would be the largest, if it were among them.
MEEK_EATERS = """
import os, time
for score in ("-1000", "-500", "-294", "0", "499"):
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(score)
    except OSError:
        pass
for _ in range(60):
    try:
        if os.fork() == 0:
            kept = os.urandom(5 << 20)
            time.sleep(600)
    except OSError:
        time.sleep(0.05)
time.sleep(600)
"""

# Memory that no process holds: ending processes sets none of it free.
SHARED_MEMORY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
made = 0
for _ in range(400):
    segment = libc.shmget(0, ctypes.c_size_t(1 << 20), 0o1600)
    if segment < 0:
        break
    place = libc.shmat(segment, None, 0)
    ctypes.memset(place, 1, 1 << 20)
    libc.shmdt(ctypes.c_void_p(place))
    made += 1
print(made)
"""


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[IsolationBackend]:
    made = load("namespaces")(BackendConfig(tmp_path / "run"))
    await made.start()
    yield made
    await made.aclose()


@pytest.fixture
async def sandbox(backend: IsolationBackend, templates_dir: Path, tmp_path: Path) -> AsyncIterator[NamespacesHandle]:
    from atoll.images.store import TemplateStore

    layers = TemplateStore(templates_dir).find_template("base").layers
    (tmp_path / "state").mkdir(mode=0o700)
    handle = await backend.create(SandboxSpec("reserve", "base", LIMITS), SandboxPaths(layers, tmp_path / "state"))
    assert isinstance(handle, NamespacesHandle)
    yield handle
    await handle.kill()


def _group(handle: NamespacesHandle) -> Group:
    return handle._group


def _users_group(handle: NamespacesHandle, controller: str) -> Path:
    """Where the kernel keeps the users apart for that controller; skips where it cannot."""
    group = _group(handle)
    if controller in group.users:
        return group.users[controller]
    if controller == "pids" and group.users_v2 is not None and group.users_v2.is_dir():
        return group.users_v2
    pytest.skip(f"this machine's cgroups cannot keep {controller} of users apart (version 2 cannot for memory)")


def _is_there(handle: NamespacesHandle) -> bool:
    return not select.select([handle._pidfd], [], [], 0)[0]


async def _until(claim: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(90):
            while not claim():  # noqa: ASYNC110 (the kernel's counters call nobody)
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(f"it did not happen: {what}")


async def _let_loose(handle: NamespacesHandle, script: str, user: str = "root") -> asyncio.Task[None]:
    async def run() -> None:
        with contextlib.suppress(EOFError, OSError):  # it is ended by the kernel or by us
            await inside.run(handle, f"exec python3 -c '{script}'", user=user)

    return asyncio.get_running_loop().create_task(run())


def _number(path: Path) -> int:
    return int(path.read_text())


async def test_the_thread_that_starts_programs_can_do_no_more_than_they(sandbox: NamespacesHandle) -> None:
    statuses = []
    for task in os.listdir(f"/proc/{sandbox.pid}/task"):
        with open(f"/proc/{sandbox.pid}/task/{task}/status") as status:
            statuses.append(status.read())
    confined = [re.findall(r"^(?:Cap\w+|Seccomp|Seccomp_filters|Uid|Gid|Groups):.*$", one, re.M) for one in statuses]
    assert len(confined) == 2
    assert confined[0] == confined[1]
    numbers = [match[1] for one in statuses if (match := re.search(r"^NSpid:.*\t(\d+)$", one, re.M))]
    assert sorted(numbers) == ["1", "2"], "the filter names the guest's threads by these"


async def test_programs_are_born_among_the_users_and_the_guest_is_not(sandbox: NamespacesHandle) -> None:
    users = _users_group(sandbox, "pids")
    task = await _let_loose(sandbox, "import time; time.sleep(600)", "user")
    members = users / ("tasks" if (users / "tasks").exists() else "cgroup.threads")
    await _until(lambda: len(members.read_text().split()) == 2, "the program and the thread that started it")
    pids = {int(pid) for pid in members.read_text().split()}
    assert sandbox.pid not in pids
    task.cancel()


@pytest.mark.parametrize("user", ["user", "root"])
async def test_nobody_lowers_a_score_below_what_the_host_set(sandbox: NamespacesHandle, user: str) -> None:
    if not caps.is_held(caps.Cap.SYS_RESOURCE):
        pytest.skip("this root lacks CAP_SYS_RESOURCE and can bound no scores; groups keep the guest instead")
    tries = "; ".join(
        f"echo {score} > /proc/{whose}/oom_score_adj; echo -16 > /proc/{whose}/oom_adj"
        for score in (-1000, -294, 0, BOUND - 1)
        for whose in ("self", "$$", "$PPID", "1")
    )
    script = f"exec 2>/dev/null; {tries}; (sleep 600 & sleep 600) & sleep 600 & sleep 600"
    running = asyncio.ensure_future(inside.run(sandbox, script, user=user))

    def scores() -> list[int]:
        found = []
        for pid in _group(sandbox).processes() - {sandbox.pid}:
            with contextlib.suppress(OSError):
                found.append(_number(Path(f"/proc/{pid}/oom_score_adj")))
        return found

    await _until(lambda: len(scores()) >= 4, "the user's processes run")
    assert min(scores()) >= BOUND
    guest = _number(Path(f"/proc/{sandbox.pid}/oom_score_adj"))
    assert guest < 0
    await inside.run(sandbox, "kill -KILL -1")
    await running


@pytest.mark.parametrize("user", ["user", "root"])
async def test_the_guest_outlives_users_that_make_themselves_small(sandbox: NamespacesHandle, user: str) -> None:
    if "memory" not in _group(sandbox).v1 and "memory" not in _group(sandbox).v2_controllers:
        pytest.skip("no memory controller: nothing is limited")
    task = await _let_loose(sandbox, MEEK_EATERS.replace("'", '"'), user)
    await _until(lambda: (_group(sandbox).usage().oom_kills or 0) > 0, "memory really ran out")
    await asyncio.sleep(2)
    assert _is_there(sandbox)
    assert await inside.health(sandbox) == 204
    await inside.run(sandbox, "kill -KILL -1")
    await task
    assert (await inside.run(sandbox, "echo alive")).out == "alive\n"


async def test_memory_that_no_process_holds_does_not_crowd_the_guest_out(sandbox: NamespacesHandle) -> None:
    memory = _users_group(sandbox, "memory")
    for _ in range(3):
        with contextlib.suppress(EOFError, OSError):
            await inside.run(sandbox, f"exec python3 -c '{SHARED_MEMORY}'")
    full = _number(memory / "memory.usage_in_bytes") / _number(memory / "memory.limit_in_bytes")
    assert full > 0.9, "the attack took what there is"
    assert _is_there(sandbox)
    assert await inside.health(sandbox) == 204
    assert _is_there(sandbox)


async def test_roots_fork_bomb_leaves_the_guest_processes_to_start(sandbox: NamespacesHandle) -> None:
    users = _users_group(sandbox, "pids")
    most = _number(users / "pids.max")
    assert most < LIMITS.pids
    task = await _let_loose(sandbox, ROOTS_BOMB.replace("'", '"'))
    await _until(lambda: _number(users / "pids.current") >= most, "the bomb has all that users may have")
    for _ in range(5):
        assert (await inside.run(sandbox, "echo started")).out == "started\n"
        assert _number(users / "pids.current") >= most - 5, "and still has it"
    assert (await inside.run(sandbox, "kill -KILL -1")).code is not None
    await task
    await _until(lambda: _number(users / "pids.current") <= 1, "the bomb is ended from inside")
    assert (await inside.run(sandbox, "echo alive | cat", user="user")).out == "alive\n"


async def test_without_a_reserve_the_same_bomb_leaves_none(sandbox: NamespacesHandle) -> None:
    """The control: the users may have what the sandbox may have."""
    users = _users_group(sandbox, "pids")
    (users / "pids.max").write_text(str(LIMITS.pids))
    whole = users.parent
    task = await _let_loose(sandbox, ROOTS_BOMB.replace("'", '"'))
    await _until(lambda: _number(whole / "pids.current") >= LIMITS.pids, "the bomb has all there is")
    refused = 0
    for _ in range(10):
        done = await inside.run(sandbox, "echo started")
        refused += done.code is None
    assert refused > 0
    os.kill(sandbox.pid, 9)
    await task


async def test_limits_that_change_keep_the_reserve(sandbox: NamespacesHandle) -> None:
    users = _users_group(sandbox, "pids")
    await sandbox.update(Limits(cpu_count=1, memory_mib=256, pids=64))
    assert _number(users / "pids.max") == 60
    assert _number(users.parent / "pids.max") == 64
