"""The processes of a server: who has which rights, and that each may be killed without a sandbox noticing."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox, SandboxException
from sdk_support import eventually

from atoll.isolation.linux.sys import caps, oom
from atoll.isolation.linux.sys.caps import Cap
from atoll.isolation.namespaces import posture
from atoll.testing import footprint
from support.tiers import SERVER_ENVIRON, one_tier

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only a server of root has rights to give up")


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _options(server: Any) -> dict[str, Any]:
    return {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url}


@as_root
def test_what_strangers_and_sandboxes_speak_to_has_no_rights(server: Any) -> None:
    found = {role: _status(server.pid_of(role)) for role in ("front", "egress")}
    for role, status in found.items():
        assert len(set(status["Uid"].split())) == 1
        assert status["Uid"].split()[0] not in ("0", str(os.getuid()))
        assert set(status["Gid"].split()) == set(status["Uid"].split())
        assert status["Groups"] == ""
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, (role, name)
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        limits = Path(f"/proc/{server.pid_of(role)}/limits").read_text()
        assert "unlimited" not in next(line for line in limits.splitlines() if line.startswith("Max data size"))
    assert found["front"]["Uid"] != found["egress"]["Uid"], "neither may reach the other"


@pytest.mark.skipif(os.getuid() != 0 or not caps.is_held(Cap.SYS_RESOURCE), reason="nobody may lower a score here")
@one_tier("the other starts its sandboxes by a program that makes itself ordinary before it begins")
def test_the_oom_killer_spares_the_server_and_not_what_runs_in_sandboxes(
    start_server: Callable[..., Any], tier: str
) -> None:
    mark = footprint.new_mark()
    environ = {footprint.MARKER: mark, **SERVER_ENVIRON[tier]}
    server = start_server(environ=environ, options=["--isolation", tier, "--end-sandboxes"])
    sandbox = Sandbox.create(timeout=60, **_options(server))
    sandbox.commands.run("sleep 8642", background=True, timeout=0)
    own = {server.process.pid, *(server.pid_of(role) for role in ("front", "node", "egress"))}
    scores = {pid: oom.score_of(pid) for pid in footprint.processes_of(mark)}
    names = {pid: _status(pid)["Name"] for pid in scores}
    own |= {pid for pid in footprint.helpers_of(mark) if names.get(pid) == "atoll-zygote"}
    assert all(scores[pid] == oom.PROTECTED for pid in own), scores
    others = {names[pid]: scores[pid] for pid in scores.keys() - set(footprint.helpers_of(mark))}
    assert others, "the control: the sandbox is among them"
    assert all(score > -300 for score in others.values()), others
    assert 500 in others.values(), "the program that somebody runs there"
    sandbox.kill()


@as_root
@one_tier("the other has no zygote")
def test_the_zygote_keeps_what_it_needs_of_roots_rights(server: Any, sandbox: Sandbox) -> None:
    own = {server.process.pid, *(server.pid_of(role) for role in ("front", "node", "egress"))}
    zygotes = [
        status
        for path in Path("/proc").glob("[0-9]*/status")
        if (status := _status(int(path.parent.name)))["Name"] == "atoll-zygote" and int(status["PPid"]) in own
    ]
    assert zygotes
    assert sandbox.commands.run("echo hi", user="root").stdout == "hi\n"
    for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "CapInh"):
        assert int(zygotes[0][name], 16) & ~caps.mask(posture.ZYGOTE_CAPABILITIES) == 0, name
    assert int(_status(server.pid_of("node"))["CapEff"], 16) & ~caps.mask(posture.ZYGOTE_CAPABILITIES), "the control"


@as_root
def test_the_gateway_has_neither_files_nor_keys(server: Any, sandbox: Sandbox) -> None:
    pid = server.pid_of("egress")
    root = Path(f"/proc/{pid}/root")
    assert not (root / server.data_dir.relative_to("/")).exists()
    assert not (root / "home").exists()
    assert (root / "etc/hosts").exists(), "the control: that root can be looked into"
    names = {entry.partition(b"=")[0] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
    assert not {name for name in names if name.startswith((b"ATOLL_", b"E2B_"))}
    key = server.api_key.encode()
    assert not _has_in_memory(pid, key)
    assert _has_in_memory(server.pid_of("front"), key), "the control"


def _has_in_memory(pid: int, secret: bytes) -> bool:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split()
            start, end = (int(part, 16) for part in fields[0].split("-"))
            if fields[1].startswith("rw") and end - start < 1 << 30:
                memory.seek(start)
                with contextlib.suppress(OSError):
                    if secret in (memory.read(end - start) or b""):
                        return True
    return False


@as_root
def test_only_the_node_has_roots_rights_and_the_launcher_listens_to_nobody(server: Any) -> None:
    node = _status(server.pid_of("node"))
    assert node["Uid"].split()[0] == "0"
    assert int(node["CapEff"], 16) != 0
    sockets = [os.readlink(entry) for entry in Path(f"/proc/{server.pid_of('node')}/fd").iterdir() if entry.exists()]
    listening = {
        fields[9] for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:]) if fields[3] == "0A"
    }
    held = {name.removeprefix("socket:[").rstrip("]") for name in sockets if name.startswith("socket:[")}
    assert not held & listening, "the node holds a socket that strangers can reach"


@as_root
def test_the_front_sees_neither_sandboxes_nor_keys_nor_the_hosts_files(server: Any, sandbox: Sandbox) -> None:
    root = Path(f"/proc/{server.pid_of('front')}/root")
    data_dir = root / server.data_dir.relative_to("/")
    assert sorted(path.name for path in data_dir.iterdir()) == ["control", "node"]
    assert (server.data_dir / "sandboxes" / sandbox.sandbox_id).is_dir(), "the control: it is there for root"
    assert not (root / "home").exists()
    assert not (root / "sys").exists()


ROLES = ("front", "node", "egress")


@pytest.mark.parametrize("role", ROLES)
def test_a_killed_process_is_started_again_alone_and_sandboxes_go_on(
    start_server: Callable[..., Any], role: str
) -> None:
    running = start_server()
    sandbox = Sandbox.create(timeout=300, **_options(running))
    command = sandbox.commands.run("for i in $(seq 400); do echo $i; sleep 0.1; done", background=True, timeout=0)
    before, others = running.pid_of(role), {one: running.pid_of(one) for one in ROLES if one != role}
    os.kill(before, signal.SIGKILL)
    eventually(lambda: _is_another(running, role, before), what=f"a new {role} process", within_s=20)
    assert {one: running.pid_of(one) for one in others} == others
    eventually(lambda: _answers(sandbox), what="the sandbox answers", within_s=20)
    assert [one.sandbox_id for one in Sandbox.list(**_options(running)).next_items()] == [sandbox.sandbox_id]
    assert command.pid in {process.pid for process in sandbox.commands.list()}, "the command goes on"
    heard: list[str] = []
    again = sandbox.commands.connect(command.pid, timeout=0)
    eventually(lambda: _read(again, heard), what="its output is taken up again", within_s=20)
    sandbox.commands.kill(command.pid)
    with Sandbox.create(timeout=60, **_options(running)) as another:
        assert another.commands.run("echo new").stdout == "new\n"


def _is_another(running: Any, role: str, before: int) -> bool:
    try:
        return running.pid_of(role) != before
    except ProcessLookupError:
        return False


def _answers(sandbox: Sandbox) -> bool:
    try:
        return sandbox.commands.run("echo here").stdout == "here\n"
    except Exception:
        return False


def _read(handle: Any, heard: list[str]) -> bool:
    if not heard:
        for stdout, _, _ in handle:
            heard.append(stdout or "")
            break
    return bool(heard)


def test_a_node_that_drains_takes_nothing_new_until_it_is_started_again(start_server: Callable[..., Any]) -> None:
    running = start_server()
    options = {**_options(running), "retries": 0}
    sandbox = Sandbox.create(timeout=300, **options)
    node = running.pid_of("node")
    os.kill(node, signal.SIGUSR1)

    def outcome() -> str:
        try:
            Sandbox.create(timeout=60, **options).kill()
        except SandboxException as error:
            return type(error).__name__
        return "made"

    eventually(lambda: outcome() == "RateLimitException", what="no new sandbox")
    assert sandbox.commands.run("echo here").stdout == "here\n"
    os.kill(node, signal.SIGKILL)
    eventually(lambda: _is_another(running, "node", node), what="another node", within_s=20)
    eventually(lambda: outcome() == "made", what="new sandboxes", within_s=20)


def test_a_stream_outlives_the_node_process(start_server: Callable[..., Any]) -> None:
    running = start_server()
    sandbox = Sandbox.create(timeout=300, **_options(running))
    command = sandbox.commands.run("for i in $(seq 40); do echo $i; sleep 0.1; done", background=True, timeout=0)
    os.kill(running.pid_of("node"), signal.SIGKILL)
    result = command.wait()
    assert result.stdout.split() == [str(number) for number in range(1, 41)]


def test_with_the_launcher_all_processes_end_and_the_next_server_takes_over(start_server: Callable[..., Any]) -> None:
    running = start_server()
    sandbox = Sandbox.create(timeout=300, **_options(running))
    pids = [running.pid_of(role) for role in ROLES]
    running.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), what="all processes are gone")
    running.start()
    again = Sandbox.connect(sandbox.sandbox_id, **_options(running))
    assert again.commands.run("echo adopted").stdout == "adopted\n"


def test_a_stranger_to_the_nodes_socket_is_not_heard(server: Any) -> None:
    """Any user may connect to it; who is not the front's user or root gets nothing. See test_wire_node."""
    path = server.data_dir / "node" / "control.sock"
    assert path.is_socket()
    assert path.parent.stat().st_uid == os.getuid()
    assert path.parent.stat().st_mode & 0o022 == 0, "nobody else may put a socket there"
