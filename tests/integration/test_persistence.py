"""What is kept of a sandbox: paused and resumed by the SDKs, at a timeout, by traffic, over the end of any process."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    CommandExitException,
    Sandbox,
    SandboxException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from e2b.exceptions import GuestUnresponsiveException, NotFoundException, SandboxNotFoundException, ServiceBusyException
from sdk_support import eventually, eventually_async

from atoll.isolation.linux.disk import loops
from atoll.isolation.linux.disk.image import IMAGE
from support.tiers import SERVER_ENVIRON, one_tier

COUNT = "for i in $(seq 100000); do echo $i; sleep 0.02; done"


def _options(server: Any) -> dict[str, Any]:
    return {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url}


def _detail(server: Any, sandbox_id: str) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/sandboxes/{sandbox_id}", headers={"X-API-Key": server.api_key})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def _is_listed(sandbox_id: str, state: SandboxState) -> bool:
    pages = Sandbox.list(query=SandboxQuery(state=[state]), limit=1)
    found: list[str] = []
    while pages.has_next:
        found += [one.sandbox_id for one in pages.next_items()]
    return sandbox_id in found


def test_a_pause_with_memory_keeps_commands_and_their_output(sandbox: Sandbox, server: Any) -> None:
    sandbox.files.write("/home/user/kept", "written before")
    command = sandbox.commands.run(COUNT, background=True, timeout=0)
    heard: list[str] = []
    listener = threading.Thread(target=_listen, args=(command, heard))
    listener.start()
    eventually(lambda: len(heard) > 5, what="it has begun")
    assert sandbox.pause() is True
    listener.join(20)
    assert not listener.is_alive(), "a pause ends what is connected"
    assert sandbox.beta_pause() is False, "409: it is paused already"
    detail = _detail(server, sandbox.sandbox_id)
    assert (detail["state"], detail["pauseMode"], detail["envdUnresponsiveAtPause"]) == ("paused", "full", False)
    assert not sandbox.is_running()
    assert _is_listed(sandbox.sandbox_id, SandboxState.PAUSED)
    assert not _is_listed(sandbox.sandbox_id, SandboxState.RUNNING)
    again = Sandbox.connect(sandbox.sandbox_id, timeout=120)
    info = again.get_info()
    assert info.state is SandboxState.RUNNING
    assert 100 < (info.end_at - info.started_at).total_seconds() < 140
    assert again.files.read("/home/user/kept") == "written before"
    assert command.pid in {process.pid for process in again.commands.list()}
    before = len(heard)
    for stdout, _, _ in again.commands.connect(command.pid, timeout=0):
        heard.append(stdout or "")
        if len(heard) > before + 20:
            break
    numbers = [int(line) for line in "".join(heard).split("\n")[:-1]]
    assert numbers == list(range(1, len(numbers) + 1)), "nothing is lost between two connections"
    again.commands.kill(command.pid)
    events = httpx.get(f"{server.url}/events/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": server.api_key})
    kinds = [event["type"].rpartition(".")[2] for event in events.json()]
    assert [kind for kind in kinds if kind in ("paused", "resumed")] in (["paused", "resumed"], ["resumed", "paused"])


def _listen(command: Any, heard: list[str]) -> None:
    with contextlib.suppress(Exception):  # the connection ends
        for stdout, _, _ in command:
            heard.append(stdout or "")


def test_a_pause_of_the_disk_keeps_the_disk_alone_again_and_again(sandbox: Sandbox, server: Any) -> None:
    for attempt in (1, 2, 3):
        sandbox.commands.run(f"echo {attempt} >> kept; sudo mkdir -p /opt/deep; sudo touch /opt/deep/{attempt}")
        command = sandbox.commands.run("sleep 1000", background=True, timeout=0)
        assert sandbox.pause(mode="filesystem") is True
        assert _detail(server, sandbox.sandbox_id)["pauseMode"] == "filesystem"
        sandbox.connect(timeout=120)
        assert sandbox.commands.run("cat kept").stdout.split() == [str(one) for one in range(1, attempt + 1)]
        assert len(sandbox.files.list("/opt/deep")) == attempt
        assert command.pid not in {process.pid for process in sandbox.commands.list()}


def test_a_memory_pause_can_be_rebooted_from_its_disk(sandbox: Sandbox) -> None:
    sandbox.commands.run("echo kept > kept; nohup sleep 1000 >/dev/null 2>&1 & true")
    sandbox.pause()
    sandbox.connect(on_resume="reboot")
    assert sandbox.commands.run("cat kept; pgrep -c sleep || true").stdout.split() == ["kept", "0"]
    assert sandbox.connect(on_resume="reboot").commands.run("echo no-op").stdout == "no-op\n"


def test_a_paused_one_can_be_killed_and_is_gone(create: Callable[..., Sandbox], server: Any) -> None:
    for mode in ("full", "filesystem"):
        sandbox = create(timeout=60)
        sandbox.pause(mode=mode)
        assert Sandbox.kill(sandbox.sandbox_id) is True
        assert Sandbox.kill(sandbox.sandbox_id) is False
        with pytest.raises(SandboxNotFoundException):
            Sandbox.connect(sandbox.sandbox_id)
        assert not (server.data_dir / "sandboxes" / sandbox.sandbox_id).exists()
    with pytest.raises(NotFoundException):
        Sandbox.pause(sandbox.sandbox_id)


async def test_at_its_timeout_it_is_paused_and_traffic_wakes_it(server: Any) -> None:
    async_sandbox = await AsyncSandbox.create(timeout=60)
    sandbox = await AsyncSandbox.create(timeout=5, lifecycle={"on_timeout": "pause", "auto_resume": True})
    await sandbox.files.write("kept", "kept")
    plain = await AsyncSandbox.create(timeout=5, lifecycle={"on_timeout": {"action": "pause", "mode": "filesystem"}})
    await plain.files.write("kept", "kept")
    try:
        assert await async_sandbox.beta_pause() is True
        assert await async_sandbox.pause() is False
        assert (await sandbox.get_info()).lifecycle == {"on_timeout": "pause", "auto_resume": True}
        for one, mode in ((sandbox, "full"), (plain, "filesystem")):
            await eventually_async(lambda one=one: _is_paused(server, one.sandbox_id), what="it is paused")
            assert _detail(server, one.sandbox_id)["pauseMode"] == mode
        assert await sandbox.files.read("kept") == "kept", "a request alone wakes it"
        assert _detail(server, sandbox.sandbox_id)["state"] == "running"
        assert not await plain.is_running(), "no traffic wakes one that has its disk alone"
        with pytest.raises(SandboxException):
            await plain.files.read("kept")
        await plain.connect(timeout=60)
        assert await plain.files.read("kept") == "kept"
    finally:
        await sandbox.kill()
        await plain.kill()
        await async_sandbox.kill()


def _is_paused(server: Any, sandbox_id: str) -> bool:
    return _detail(server, sandbox_id)["state"] == "paused"


@one_tier("gVisor saves a sandbox with the help of its guest: one that does not answer is not paused with its memory")
def test_a_guest_that_does_not_answer_is_told_and_only_a_reboot_brings_it_back(sandbox: Sandbox, server: Any) -> None:
    sandbox.commands.run("echo kept > kept")
    pid = _first_process(server, sandbox.sandbox_id)
    os.kill(pid, signal.SIGSTOP)
    try:
        for options in ({"strict": True}, {"mode": "filesystem"}):
            with pytest.raises(ServiceBusyException, match="does not answer"):
                sandbox.pause(**options)
            assert _detail(server, sandbox.sandbox_id)["state"] == "running"
        assert sandbox.pause() is True
    finally:
        os.kill(pid, signal.SIGCONT)
    assert _detail(server, sandbox.sandbox_id)["envdUnresponsiveAtPause"] is True
    with pytest.raises(GuestUnresponsiveException):
        Sandbox.connect(sandbox.sandbox_id)
    assert Sandbox.connect(sandbox.sandbox_id, on_resume="reboot").commands.run("cat kept").stdout == "kept\n"


def _first_process(server: Any, sandbox_id: str) -> int:
    state = json.loads((server.data_dir / "sandboxes" / sandbox_id / "state.json").read_text())
    return int(state["handle"]["pid"])


def test_what_is_paused_outlives_every_process_of_the_server(start_server: Callable[..., Any]) -> None:
    running = start_server()
    options = _options(running)
    frozen, ended = (Sandbox.create(timeout=300, **options) for _ in range(2))
    for sandbox in (frozen, ended):
        sandbox.commands.run("echo kept > kept")
    command = frozen.commands.run("sleep 1000", background=True, timeout=0)
    frozen.pause()
    ended.pause(mode="filesystem")
    running.kill()
    running.start()
    options = _options(running)
    pages = Sandbox.list(query=SandboxQuery(state=[SandboxState.PAUSED]), **options)
    assert {one.sandbox_id for one in pages.next_items()} == {frozen.sandbox_id, ended.sandbox_id}
    for sandbox in (frozen, ended):
        again = Sandbox.connect(sandbox.sandbox_id, **options)
        assert again.commands.run("cat kept").stdout == "kept\n"
        assert (command.pid in {process.pid for process in again.commands.list()}) == (sandbox is frozen)
        assert sandbox.kill(**options)


@pytest.mark.parametrize("role", ["front", "node"])
def test_a_process_killed_anywhere_in_a_pause_or_resume_leaves_a_state_that_can_be_left(
    start_server: Callable[..., Any], role: str
) -> None:
    running = start_server()
    options = {**_options(running), "retries": 0, "request_timeout": 10}
    sandbox = Sandbox.create(timeout=600, **options)
    for attempt, delay in enumerate((0.0, 0.004, 0.01, 0.03)):
        sandbox.commands.run(f"echo {attempt} >> kept")
        mode = "full" if attempt % 2 else "filesystem"
        pause = functools.partial(sandbox.pause, mode=mode)
        for step in (pause, functools.partial(Sandbox.connect, sandbox.sandbox_id, **options)):
            before = running.pid_of(role)
            killer = _kill_later(before, delay)
            with contextlib.suppress(Exception):  # its answer is lost, or it says that it failed
                step()
            killer.join()
            eventually(lambda before=before: _is_another(running, role, before), what=f"a new {role}", within_s=30)
            eventually(lambda: _can_be_used(sandbox, options), what="it can be used", within_s=30)
        kept = Sandbox.connect(sandbox.sandbox_id, **options).commands.run("cat kept").stdout
        assert kept.split() == [str(one) for one in range(attempt + 1)]
    assert Sandbox.kill(sandbox.sandbox_id, **options)


def _kill_later(pid: int, delay_s: float) -> threading.Timer:
    killer = threading.Timer(delay_s, os.kill, (pid, signal.SIGKILL))
    killer.start()
    return killer


def _is_another(running: Any, role: str, before: int) -> bool:
    try:
        return bool(running.pid_of(role) != before)
    except (ProcessLookupError, StopIteration):
        return False


def _can_be_used(sandbox: Sandbox, options: dict[str, Any]) -> bool:
    try:
        again = Sandbox.connect(sandbox.sandbox_id, **options)
        return again.commands.run("echo here").stdout == "here\n"
    except (SandboxException, httpx.HTTPError, CommandExitException):
        return False


def _freeze(group: str) -> None:
    """A sandbox's processes stand still, as during a copy of its disk."""
    for name, word in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
        for file in Path("/sys/fs/cgroup").glob(f"**/{group}/{name}"):
            file.write_text(word)


def test_a_node_killed_while_it_copies_a_disk_leaves_no_disk_standing_still(
    tier: str, start_server: Callable[..., Any]
) -> None:
    server = start_server(options=["--isolation", tier], environ=SERVER_ENVIRON[tier])
    sandbox = Sandbox.create(**_options(server))
    sandbox.files.write("/home/user/before", "1")
    image = next((server.data_dir / "sandboxes").glob(f"{sandbox.sandbox_id}/{IMAGE}"))
    # As the node does it, up to the moment that it would copy: then it is killed.
    killed = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from atoll.isolation.linux.disk import kept\n"
        "kept.copy_file = lambda *_: os.kill(os.getpid(), 9)\n"
        "kept.copy(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    done = subprocess.run([sys.executable, "-c", killed, image, server.data_dir / "copy"], check=False)
    assert done.returncode == -signal.SIGKILL
    write = sandbox.commands.run("echo 2 > /home/user/after; sync; echo done", background=True)
    _freeze(json.loads((image.parent / "state.json").read_text())["handle"]["group"])
    with pytest.raises(TimeoutException):  # the control: without a new node nothing moves
        sandbox.commands.list(request_timeout=2)
    os.kill(server.pid_of("node"), signal.SIGKILL)
    assert write.wait().stdout == "done\n"
    assert sandbox.files.read("/home/user/before") == "1"
    sandbox.kill()
    eventually(lambda: loops.device_of(image) is None, what="its device is free")
