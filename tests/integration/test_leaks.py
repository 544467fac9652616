"""Nothing is left of a sandbox that ended, however it ended. Counted from outside the product (`testing.footprint`).

Each test has a server of its own, so that no other test's sandboxes are in the counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox, SandboxException, TimeoutException
from sdk_support import (
    LEAVE_AFTER_S,
    address_of,
    ask_and_leave,
    convergence_s,
    create_request,
    creates_held_up,
    eventually,
    is_alive,
)

from atoll.testing import footprint
from atoll.testing.footprint import Footprint
from support.tiers import one_tier

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="counting other processes' descriptors and namespaces needs root"),
    pytest.mark.timeout(300),
]

CYCLES = 200


class Observed:
    """A server that can be counted, and created on."""

    def __init__(self, server: Any, mark: str) -> None:
        self.server = server
        self.mark = mark
        self.bases: frozenset[Path] = frozenset()

    def create(self, **options: Any) -> Sandbox:
        return Sandbox.create(**{"timeout": 300, **options}, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        url = self.server.url
        return {"api_key": self.server.api_key, "api_url": url, "sandbox_url": url}

    def take(self) -> Footprint:
        return footprint.take(self.mark, self.bases)

    def at_rest(self) -> Footprint:
        """A reading after whatever goes on in the background (clearing up, preparing the next sandbox) is done."""
        _use_and_kill(self)

        def unchanged() -> Footprint | None:
            first = self.take()
            time.sleep(2.0)  # the pool fills up in steps, with pauses between them
            return first if first == self.take() and not self.directories() else None

        return eventually(unchanged, what="a server at rest", within_s=30)

    def settles_at(self, before: Footprint, within_s: float = 30) -> None:
        """What was counted comes back to what it was: cleaning up may go on for a moment after the answer."""

        def same() -> bool:
            return not _grown(before, self.take()) and not self.directories()

        try:
            eventually(same, what="the footprint before", within_s=within_s)
        except AssertionError:
            now = self.take()
            pytest.fail(f"left behind: {_grown(before, now)} {self.directories()[:5]}\n{before}\n{now}")

    def directories(self) -> list[Path]:
        """Directories of sandboxes and of what is on its way out."""
        data = Path(self.server.data_dir)
        return [path for name in ("sandboxes", "trash") if (data / name).is_dir() for path in (data / name).iterdir()]


def _grown(before: Footprint, now: Footprint) -> dict[str, Any]:
    grown: dict[str, Any] = {
        name: (getattr(before, name), getattr(now, name))
        for name in ("processes", "namespaces", "mounts", "cgroups")
        if getattr(now, name) > getattr(before, name)
    }
    if more := now.fds - before.fds:
        grown["fds"] = dict(more)
    return grown


@pytest.fixture
def observed(start_server: Callable[..., Any]) -> Observed:
    mark = footprint.new_mark()
    return Observed(start_server(environ={footprint.MARKER: mark}), mark)


def _use_and_kill(observed: Observed) -> None:
    sandbox = observed.create()
    assert sandbox.commands.run("echo hi").stdout == "hi\n"
    if not observed.bases:
        observed.bases = footprint.cgroup_bases(observed.mark)
        assert observed.bases, "a live sandbox is in no cgroup of its own: its limits cannot hold"
    assert sandbox.kill() is True


def test_two_hundred_sandboxes_leave_nothing(observed: Observed) -> None:
    for _ in range(5):
        before = observed.at_rest()
    for _ in range(CYCLES):
        _use_and_kill(observed)
    observed.settles_at(before)


def test_the_counting_sees_a_sandbox_that_lives(observed: Observed) -> None:
    """The proof that the other tests can fail."""
    before = observed.at_rest()
    sandbox = observed.create()
    sandbox.commands.run("sleep 86371", background=True, timeout=0)
    now = eventually(
        lambda: reading if (reading := observed.take()).processes > before.processes else None, what="more"
    )
    assert now.namespaces >= before.namespaces
    assert now.cgroups > before.cgroups
    assert observed.directories()
    others = [observed.create() for _ in range(12)]
    assert observed.take().namespaces >= before.namespaces + 5
    for other in others:
        other.kill()
    sandbox.kill()
    observed.settles_at(before)


def test_sandboxes_killed_in_the_middle_of_everything_leave_nothing(observed: Observed) -> None:
    before = observed.at_rest()

    def one(n: int) -> None:
        sandbox = observed.create()
        sandbox.commands.run("sleep 86377 & sleep 86376 & (setsid sleep 86375 &) ; wait", background=True, timeout=0)
        sandbox.commands.run("yes", background=True, timeout=0)
        sandbox.files.watch_dir("/home/user")
        sandbox.files.write("blob", os.urandom(300_000))
        time.sleep(random.Random(n).random() * 0.1)
        sandbox.kill()

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(one, range(30)))
    observed.settles_at(before)


def test_sandboxes_that_time_out_leave_nothing(observed: Observed) -> None:
    before = observed.at_rest()
    for _ in range(15):
        observed.create(timeout=1)
    observed.settles_at(before)


def test_creates_that_fail_leave_nothing(observed: Observed) -> None:
    before = observed.at_rest()
    for _ in range(20):
        with pytest.raises(SandboxException):
            Sandbox.create("no-such-template", **observed.options)
        body = {"templateID": "base", "envVars": {"A=B": "x"}}
        headers = {"X-API-Key": observed.server.api_key}
        assert httpx.post(f"{observed.server.url}/v2/sandboxes", json=body, headers=headers).status_code in (400, 422)
    observed.settles_at(before)


def _listed(observed: Observed) -> set[str]:
    answer = httpx.get(f"{observed.server.url}/v2/sandboxes", headers={"X-API-Key": observed.server.api_key})
    return {item["sandboxID"] for item in answer.json()}


def test_clients_that_leave_during_a_create_leave_no_sandbox(observed: Observed) -> None:
    before = observed.at_rest()
    server = observed.server
    answered = {ask_and_leave(server, after_s) for _ in range(3) for after_s in LEAVE_AFTER_S}
    with ThreadPoolExecutor(24) as pool:  # more than are kept warm
        answered |= set(pool.map(lambda n: ask_and_leave(server, LEAVE_AFTER_S[n % 8]), range(24)))
    assert None in answered, "no client left before it had its answer"
    answered -= {None}
    eventually(lambda: _listed(observed) == answered, what="none but those whose makers know of them", within_s=30)
    for sandbox_id in answered:
        Sandbox.kill(sandbox_id, **observed.options)
    observed.settles_at(before)


def _gives_up(observed: Observed) -> None:
    """The SDK's create with a time-out that is too short."""
    with pytest.raises((TimeoutException, httpx.TimeoutException)):
        observed.create(timeout=3600, request_timeout=1, retries=0)


def _closes(observed: Observed) -> None:
    with socket.create_connection(address_of(observed.server)) as sock:
        sock.sendall(create_request(observed.server))
        time.sleep(1)


@pytest.mark.parametrize("leave", [_gives_up, _closes])
def test_a_create_that_goes_on_when_its_client_has_left_is_undone(
    observed: Observed, leave: Callable[[Observed], None]
) -> None:
    before = observed.at_rest()
    with creates_held_up(observed.server):
        leave(observed)
        assert len(observed.directories()) == 1, "nothing was begun"
    observed.settles_at(before)
    assert _listed(observed) == set()


def test_a_create_with_an_idempotency_key_is_there_for_who_asks_again(observed: Observed) -> None:
    with creates_held_up(observed.server), pytest.raises((TimeoutException, httpx.TimeoutException)):
        observed.create(idempotency_key="once-more", request_timeout=1, retries=0)
    (left,) = eventually(lambda: _listed(observed), what="the sandbox that nobody has heard of yet")
    found = observed.create(idempotency_key="once-more")
    assert found.sandbox_id == left
    assert found.commands.run("echo hi").stdout == "hi\n"
    assert _listed(observed) == {left}
    found.kill()


def test_clients_that_leave_in_the_middle_cost_the_server_nothing(observed: Observed) -> None:
    _use_and_kill(observed)
    sandbox = observed.create()
    sandbox.commands.run("head -c 20000000 /dev/zero > big")
    _leave_early(observed, sandbox, 3)
    before = observed.take()
    _leave_early(observed, sandbox, 40)

    def same() -> bool:
        now = observed.take()
        return now.processes <= before.processes and not (now.fds - before.fds)

    eventually(same, what=f"the descriptors and processes of {before}", within_s=30)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
    sandbox.kill()


def _leave_early(observed: Observed, sandbox: Sandbox, times: int) -> None:
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox._envd_access_token or "",
    }
    for _ in range(times):
        with httpx.stream("GET", f"{observed.server.url}/files?path=big", headers=headers) as response:
            next(response.iter_raw())
        handle = sandbox.commands.run("sleep 86374", background=True, timeout=0)
        handle.disconnect()
        sandbox.commands.kill(handle.pid)


def test_a_server_that_was_killed_is_followed_by_one_that_adopts(observed: Observed) -> None:
    sandbox = observed.create(metadata={"k": "v"})
    sandbox.files.write("note", "kept")
    sandbox.commands.run("sleep 86373", background=True, timeout=0)
    observed.server.kill()
    observed.server.start()
    again = Sandbox.connect(sandbox.sandbox_id, **observed.options)
    assert again.files.read("note") == "kept"
    assert is_alive(again, "sleep 86373") or is_alive(again, "/bin/bash -l -c sleep 86373")
    assert again.get_info().metadata == {"k": "v"}
    assert again.kill() is True
    before_ids = observed.directories()
    eventually(lambda: observed.directories() == [], what=f"the directories {before_ids} are gone")
    _use_and_kill(observed)


def test_a_server_that_was_killed_while_creating_leaves_nothing(observed: Observed) -> None:
    before = observed.at_rest()
    for delay_s in (0.02, 0.05, 0.1):
        stop = threading.Event()

        def create_until(stop: threading.Event = stop) -> None:
            while not stop.is_set():
                try:
                    observed.create(request_timeout=5, retries=0)
                except Exception:
                    return

        workers = [threading.Thread(target=create_until) for _ in range(4)]
        for worker in workers:
            worker.start()
        time.sleep(delay_s)
        observed.server.kill()
        stop.set()
        for worker in workers:
            worker.join(30)
        observed.server.start()
    headers = {"X-API-Key": observed.server.api_key}
    with httpx.Client(base_url=observed.server.url, headers=headers, timeout=30) as api:
        for item in api.get("/v2/sandboxes").json():
            assert api.delete(f"/sandboxes/{item['sandboxID']}").status_code == 204
    _use_and_kill(observed)  # as before the first reading: what is made ahead of need is made for who asked last
    observed.settles_at(before)


KILLED_AFTER_S = (0.0, 0.003, 0.006, 0.01, 0.02, 0.04, 0.08)


def _kill_in_the_middle(observed: Observed, victim: str) -> None:
    if victim == "server":
        observed.server.kill()
        observed.server.start()
        return
    for pid in eventually(lambda: _pids(observed, victim), what=f"a {victim} after the last"):
        with contextlib.suppress(ProcessLookupError):  # its successor is not there yet
            os.kill(pid, signal.SIGKILL)


def _pids(observed: Observed, victim: str) -> list[int]:
    if victim != "zygote":
        with contextlib.suppress(ProcessLookupError):
            return [observed.server.pid_of(victim)]
        return []
    return [pid for pid in footprint.helpers_of(observed.mark) if _command_line(pid).startswith(b"atoll-zygote")]


def _is_back(observed: Observed, victim: str) -> bool:
    """Whoever was killed runs and serves, as far as can be seen from outside."""
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
        _listed(observed)
        return victim == "server" or bool(_pids(observed, victim))
    return False


@pytest.mark.parametrize("victim", ["zygote", "node", "front", "egress", "server"])
def test_whatever_is_killed_in_the_middle_nothing_acknowledged_is_lost_and_nothing_is_left(
    observed: Observed, victim: str
) -> None:
    before = observed.at_rest()
    made: set[str] = set()
    ended: set[str] = set()
    in_doubt: set[str] = set()
    # Creates that were cut off. Between the last word on disk and the answer a sandbox may be left, until its time.
    unanswered: list[int] = []

    def create_and_kill(number: int) -> None:
        unanswered.append(number)
        with contextlib.suppress(Exception):  # what was cut off was not acknowledged
            sandbox = observed.create(request_timeout=20, retries=0)
            made.add(sandbox.sandbox_id)
            unanswered.remove(number)
            if number % 2:
                in_doubt.add(sandbox.sandbox_id)
                Sandbox.kill(sandbox.sandbox_id, request_timeout=20, retries=0, **observed.options)
                ended.add(sandbox.sandbox_id)

    for delay_s in KILLED_AFTER_S:
        with ThreadPoolExecutor(4) as pool:
            work = [pool.submit(create_and_kill, number) for number in range(4)]
            time.sleep(delay_s)
            _kill_in_the_middle(observed, victim)
        assert all(one.done() for one in work)

    def settled() -> bool:
        with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):  # it is being started again
            listed = _listed(observed)
            return made - in_doubt <= listed and not listed & ended and len(listed - made) <= len(unanswered)
        return False

    if victim == "zygote":  # the next create starts it
        observed.create().kill()
    eventually(lambda: _is_back(observed, victim), what=f"another {victim}", within_s=30)
    eventually(settled, what="all that was acknowledged, and nothing else", within_s=convergence_s())
    for sandbox_id in made - in_doubt:
        again = Sandbox.connect(sandbox_id, **observed.options)
        assert again.commands.run("echo hi").stdout == "hi\n"
    for sandbox_id in _listed(observed):
        Sandbox.kill(sandbox_id, **observed.options)
    _use_and_kill(observed)
    observed.settles_at(before, convergence_s())


def test_a_snapshot_that_sandboxes_stood_on_is_let_go(observed: Observed) -> None:
    before = observed.at_rest()
    source = observed.create()
    snapshot = source.create_snapshot(mode="filesystem").snapshot_id
    child = Sandbox.create(snapshot, timeout=300, **observed.options)
    for sandbox in (child, source):
        sandbox.kill()
    Sandbox.delete_snapshot(snapshot, **observed.options)
    _use_and_kill(observed)  # as before the first reading: what is made ahead of need is made for who asked last
    observed.settles_at(before, 60)


@one_tier("the other has no zygote")
def test_a_killed_zygote_leaves_no_group_and_takes_no_paused_sandbox_with_it(observed: Observed) -> None:
    _use_and_kill(observed)
    paused = observed.create()
    command = paused.commands.run("sleep 86373", background=True, timeout=0)
    state = json.loads((Path(observed.server.data_dir) / "sandboxes" / paused.sandbox_id / "state.json").read_bytes())
    group = str(state["handle"]["group"])
    zygote = group.partition("-")[0]
    paused.pause()
    _kill_in_the_middle(observed, "zygote")
    _use_and_kill(observed)  # by another zygote: the groups that waited at the first one are cleared up
    eventually(
        lambda: {path.name for base in observed.bases for path in base.glob(f"{zygote}-*")} == {group},
        what="nothing of the killed zygote is left but the sandbox that is paused",
    )
    paused.connect()
    assert command.pid in {one.pid for one in paused.commands.list()}


def test_sandboxes_that_died_while_no_server_ran_are_cleared_up(observed: Observed) -> None:
    before = observed.at_rest()
    sandbox = observed.create()
    observed.server.kill()
    host = os.stat("/proc/self/ns/pid").st_ino
    for pid, namespace in footprint.processes_of(observed.mark).items():
        if namespace != host:
            with contextlib.suppress(ProcessLookupError):  # ended by itself meanwhile
                os.kill(pid, signal.SIGKILL)
    observed.server.start()
    assert Sandbox.kill(sandbox.sandbox_id, **observed.options) is False
    _use_and_kill(observed)
    observed.settles_at(before)


def test_a_guest_that_dies_takes_its_sandbox_with_it(observed: Observed) -> None:
    before = observed.at_rest()
    sandbox = observed.create()
    sandbox.commands.run("sleep 86372", background=True, timeout=0)
    processes = footprint.processes_of(observed.mark)
    [its_own] = {namespace for pid, namespace in processes.items() if b"86372" in _command_line(pid)}
    [guest] = [pid for pid, namespace in processes.items() if namespace == its_own and _is_init(pid)]
    os.kill(guest, signal.SIGKILL)
    eventually(lambda: not sandbox.is_running(), what="the sandbox is told as gone")
    observed.settles_at(before)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # ended meanwhile
        return b""


def _is_init(pid: int) -> bool:
    """Is it the first process of its pid namespace?"""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1] == "1"
    return False


def test_a_stopped_server_that_keeps_nothing_leaves_nothing(start_server: Callable[..., Any]) -> None:
    mark = footprint.new_mark()
    server = start_server(environ={footprint.MARKER: mark}, options=["--end-sandboxes"])
    observed = Observed(server, mark)
    _use_and_kill(observed)
    for _ in range(3):
        observed.create()
    server.stop()
    eventually(lambda: not footprint.processes_of(mark), what="no process of the server is left", within_s=30)
    assert observed.take().cgroups == 0
    assert observed.directories() == []
