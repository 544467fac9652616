"""process.Process of a real guest, driven with the published SDK where it can say it and with raw Connect where not."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from _fake_guest import RunningGuest, running_guest
from e2b import CommandExitException, PtySize, Sandbox
from e2b.exceptions import (
    AuthenticationException,
    InvalidArgumentException,
    NotFoundException,
    SandboxException,
    TimeoutException,
)

from atoll.guest.process import tree
from atoll.guest.process.process import Channels, Process
from atoll.wire.envd import process
from atoll.wire.envd.connect import envelope


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGuest]:
    with running_guest(tmp_path_factory.mktemp("guest"), env_vars={"FROM_CREATE": "yes", "OVER": "create"}) as found:
        yield found


@pytest.fixture(scope="module")
def sandbox(guest: RunningGuest) -> Sandbox:
    return guest.sandbox()


def home(guest: RunningGuest) -> str:
    return str(guest.state_dir / "home")


def wait_until(condition: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.01)


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has just ended
        return ""


def alive(pid: int) -> bool:
    return pid in tree.members(pid)


def stream(
    guest: RunningGuest, method: str, message: Any, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    """All envelopes of one server stream, the end envelope last."""
    response = httpx.post(
        f"{guest.url}/process.Process/{method}",
        content=envelope(message.to_json()),
        headers={"content-type": "application/connect+json", **(headers or {})},
        timeout=30,
    )
    assert response.status_code == 200
    data, found = response.content, []
    while data:
        _, size = struct.unpack_from(">BI", data)
        found.append(json.loads(data[5 : 5 + size]))
        data = data[5 + size :]
    return found


def start_of(cmd: str, *args: str, **fields: Any) -> process.StartRequest:
    return process.StartRequest(process=process.ProcessConfig(cmd=cmd, args=list(args)), **fields)


# -- running --------------------------------------------------------------------------------------------------------


def test_stdout_stderr_and_exit_code_are_told_apart(sandbox: Sandbox) -> None:
    with pytest.raises(CommandExitException) as caught:
        sandbox.commands.run("echo out; echo err >&2; exit 3")
    found = caught.value
    assert (found.stdout, found.stderr, found.exit_code, found.error) == ("out\n", "err\n", 3, "exit status 3")
    assert sandbox.commands.run("true").error is None


def test_the_environment_is_the_users_then_the_sandboxes_then_the_calls(guest: RunningGuest, sandbox: Sandbox) -> None:
    shown = sandbox.commands.run(
        'echo "$HOME|$USER|$LOGNAME|$FROM_CREATE|$OVER|$MINE"', envs={"OVER": "call", "MINE": "a b"}
    ).stdout
    assert shown == f"{home(guest)}|user|user|yes|call|a b\n"


def test_nothing_of_the_guests_own_environment_descriptors_or_session_leaks(sandbox: Sandbox) -> None:
    found = sandbox.commands.run("ls -l /proc/self/fd | grep -c socket; umask; ps -o sid= -p $$; echo $$", timeout=10)
    sockets, umask, session, pid = found.stdout.split()
    assert sockets == "0"
    assert umask == "0022"
    assert session == pid
    assert "PYTEST" not in sandbox.commands.run("env").stdout


def test_ignored_signals_of_the_guest_are_not_inherited(sandbox: Sandbox) -> None:
    status = sandbox.commands.run("grep -E '^Sig(Ign|Blk)' /proc/self/status").stdout
    # Signals 32 and 33 belong to the C library, which lets nobody set them.
    masks = [int(line.split()[1], 16) & ~(0b11 << 31) for line in status.splitlines()]
    assert masks == [0, 0]


@pytest.mark.parametrize(
    ("cwd", "expected"), [("/", "/"), ("~", "{home}"), ("sub", "{home}/sub"), ("~/sub", "{home}/sub")]
)
def test_cwd_may_be_absolute_relative_or_tilde(guest: RunningGuest, sandbox: Sandbox, cwd: str, expected: str) -> None:
    (guest.state_dir / "home" / "sub").mkdir(exist_ok=True)
    assert sandbox.commands.run("pwd", cwd=cwd).stdout.strip() == expected.format(home=home(guest))


def test_a_missing_cwd_is_an_invalid_argument(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidArgumentException, match="cwd '/no/where' does not exist"):
        sandbox.commands.run("true", cwd="/no/where")


def test_an_unknown_user_is_refused_by_name(sandbox: Sandbox) -> None:
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
        sandbox.commands.run("true", user="nobody-here")


@pytest.mark.parametrize("cmd", ["no-such-program", "/no/such/program", "/etc/passwd", "/", "a\0b"])
def test_a_program_that_cannot_be_started_is_an_invalid_argument(guest: RunningGuest, cmd: str) -> None:
    (end,) = stream(guest, "Start", start_of(cmd))
    assert end["error"]["code"] == "invalid_argument"
    assert "error starting process" in end["error"]["message"]


def test_an_empty_command_is_an_invalid_argument(guest: RunningGuest) -> None:
    (end,) = stream(guest, "Start", process.StartRequest())
    assert end["error"]["code"] == "invalid_argument"


def test_a_failed_start_leaves_no_descriptor_behind(guest: RunningGuest) -> None:
    pid = int(guest.handle.record()["pid"])
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(20):
        stream(guest, "Start", start_of("no-such-program"))
        stream(guest, "Start", start_of("no-such-program", pty=process.PTY()))
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) <= before + 1)


def test_a_process_killed_by_a_signal_says_which(guest: RunningGuest) -> None:
    *_, end, _ = stream(guest, "Start", start_of("/bin/sh", "-c", "kill -SEGV $$"))
    assert end["event"]["end"] == {
        "exitCode": -1,
        "status": "signal: segmentation fault",
        "error": "signal: segmentation fault",
    }


def test_start_speaks_binary_protobuf(guest: RunningGuest) -> None:
    response = httpx.post(
        f"{guest.url}/process.Process/Start",
        content=envelope(start_of("/bin/echo", "hi").to_binary()),
        headers={"content-type": "application/connect+proto"},
    )
    data, events = response.content, []
    while data[0] == 0:
        size = struct.unpack_from(">I", data, 1)[0]
        events.append(process.StartResponse.from_binary(data[5 : 5 + size]).event)
        data = data[5 + size :]
    assert [event.data.stdout for event in events if event and event.data] == [b"hi\n"]
    assert events[-1] is not None
    assert events[-1].end == process.EndEvent(exit_code=0, exited=True, status="exit status 0")


def test_190_processes_in_parallel_all_end_well(guest: RunningGuest, sandbox: Sandbox) -> None:
    # The SDK opens 200 connections at most.
    gate = guest.state_dir / "home" / "gate"
    os.mkfifo(gate)
    before = len(sandbox.commands.list())
    handles = [sandbox.commands.run(f"read x < gate; echo {number}", background=True) for number in range(190)]
    assert len(sandbox.commands.list()) == before + 190
    fd = os.open(gate, os.O_RDWR)  # every reader's open returns, every read waits
    os.write(fd, b"\n" * 190)
    assert [handle.wait().stdout for handle in handles] == [f"{number}\n" for number in range(190)]
    os.close(fd)
    wait_until(lambda: len(sandbox.commands.list()) == before)


# -- the end --------------------------------------------------------------------------------------------------------


def test_a_server_left_in_the_background_does_not_hold_the_command_and_lives_on(sandbox: Sandbox) -> None:
    found = sandbox.commands.run("(while sleep 0.05; do echo tick; done) & echo $!", timeout=20)
    pid = int(found.stdout.split()[0])
    time.sleep(0.3)  # it has written to the pipe of the ended command several times by now
    assert alive(pid)
    os.kill(pid, 9)


def test_a_grandchild_that_floods_the_pipe_does_not_hold_the_end_back(sandbox: Sandbox) -> None:
    found = sandbox.commands.run("yes & echo $! >&2", timeout=20)
    pid = int(found.stderr)
    assert alive(pid)
    os.kill(pid, 9)


def test_output_of_a_filter_that_ends_after_the_shell_is_not_lost(sandbox: Sandbox) -> None:
    assert "late" in sandbox.commands.run("exec > >(sleep 0.02; cat); echo late").stdout


def test_all_output_arrives_before_the_end(sandbox: Sandbox) -> None:
    found = sandbox.commands.run("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo done")
    assert len(found.stdout) == 3_000_000 + len("\ndone\n")


def test_no_zombie_of_ours_or_of_orphans_stays(guest: RunningGuest, sandbox: Sandbox) -> None:
    sandbox.commands.run("for i in 1 2 3 4 5; do (setsid sleep 0.05 &) ; done")
    pid = int(guest.handle.record()["pid"])

    def zombies() -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if fields[0] == "Z" and int(fields[1]) == pid:
                    found.append(entry.name)
        return found

    time.sleep(0.1)
    wait_until(lambda: zombies() == [])


# -- killing --------------------------------------------------------------------------------------------------------


def test_kill_ends_the_whole_tree_also_children_with_sessions_of_their_own(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("setsid sleep 1000 & sleep 1000 & echo ready; wait", background=True)
    for out, _, _ in handle:
        if out and "ready" in out:
            break
    wait_until(lambda: len(tree.members(handle.pid)) == 3)
    pids = tree.members(handle.pid)
    assert handle.kill() is True
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_a_signal_reaches_parents_before_their_children(sandbox: Sandbox) -> None:
    # A session that ends between its leader and the deepest process, so that pids and depth disagree for some of them.
    handle = sandbox.commands.run(
        "for i in $(seq 20); do setsid sh -c 'sleep 1000; true' & done; wait", background=True
    )
    wait_until(lambda: len(tree.members(handle.pid)) == 41)
    order = tree.members(handle.pid)
    assert order[0] == handle.pid
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in order[1:]}
    assert all(order.index(parent) < order.index(pid) for pid, parent in parents.items())
    handle.kill()


def test_a_command_whose_child_dies_first_goes_on_which_is_what_the_order_prevents(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 1000; true", background=True)
    # Not any child: a login shell starts some of its own before.
    wait_until(lambda: [name_of(pid) for pid in tree.members(handle.pid)[1:]] == ["sleep"])
    for pid in reversed(tree.members(handle.pid)[1:]):
        os.kill(pid, signal.SIGKILL)
    assert handle.wait().exit_code == 0


def test_killing_what_is_gone_is_false(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("true", background=True)
    handle.wait()
    assert sandbox.commands.kill(handle.pid) is False
    assert sandbox.commands.kill(4_000_000_000) is False


def test_the_timeout_of_a_command_kills_its_tree(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 1000 & sleep 1000", background=True, timeout=0.5)
    wait_until(lambda: len(tree.members(handle.pid)) == 3)
    pids = tree.members(handle.pid)
    with pytest.raises(TimeoutException):
        handle.wait()
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_a_deadline_is_told_as_such(guest: RunningGuest) -> None:
    *_, end = stream(guest, "Start", start_of("/bin/sleep", "100"), {"connect-timeout-ms": "100"})
    assert end["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("number", [0, 2, 1000])
def test_a_signal_that_is_not_offered_is_refused(guest: RunningGuest, sandbox: Sandbox, number: int) -> None:
    handle = sandbox.commands.run("sleep 100", background=True)
    body = {"process": {"pid": handle.pid}, "signal": number}
    response = httpx.post(f"{guest.url}/process.Process/SendSignal", json=body)
    assert (response.status_code, response.json()["code"]) == (501, "unimplemented")
    handle.kill()


# -- clients that come and go ---------------------------------------------------------------------------------------


def test_a_process_survives_its_client_and_can_be_heard_again(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("read line; echo got $line", background=True, stdin=True)
    handle.disconnect()
    assert handle.pid in [each.pid for each in sandbox.commands.list()]
    again = sandbox.commands.connect(handle.pid)
    sandbox.commands.send_stdin(handle.pid, "it\n")
    assert again.wait().stdout == "got it\n"


def test_output_of_a_lonely_process_is_kept_for_the_next_client(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("echo before; sleep 0.3; echo while away", background=True)
    handle.disconnect()
    wait_until(lambda: handle.pid not in [each.pid for each in sandbox.commands.list()])
    found = sandbox.commands.connect(handle.pid).wait()
    assert found.exit_code == 0
    assert found.stdout.endswith("while away\n")


async def test_what_a_client_left_without_is_the_next_ones() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    loop = asyncio.get_running_loop()
    config = process.ProcessConfig(cmd="true", args=[], envs={}, cwd=None)
    lonely = Process(os.getpid(), config, None, Channels(stdout=reading), loop, lambda ended: None)
    first = lonely.subscribe()
    assert (await first.next(60)).start is not None
    os.write(writing, b"on its way")
    while first.size == 0:  # noqa: ASYNC110 - nothing tells of it but the event that is not to be taken
        await asyncio.sleep(0.01)
    first.close()
    second = lonely.subscribe()
    assert (await second.next(60)).start is not None
    assert (await second.next(60)).data == process.DataEvent(stdout=b"on its way")
    second.close()
    assert lonely.backlog_size == 0
    loop.remove_reader(reading)
    os.close(reading)
    os.close(writing)


def test_a_process_without_a_client_never_waits_for_one(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("head -c 50000000 /dev/zero", background=True)
    handle.disconnect()
    wait_until(lambda: handle.pid not in [each.pid for each in sandbox.commands.list()])


def test_two_clients_hear_the_same(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("read x; echo both", background=True, stdin=True)
    other = sandbox.commands.connect(handle.pid)
    sandbox.commands.send_stdin(handle.pid, "\n")
    assert handle.wait().stdout == other.wait().stdout == "both\n"


def test_a_slow_client_stops_the_program_and_not_the_guests_memory(guest: RunningGuest) -> None:
    guest_pid = int(guest.handle.record()["pid"])

    def resident_kib() -> int:
        for line in Path(f"/proc/{guest_pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise AssertionError

    with httpx.stream(
        "POST",
        f"{guest.url}/process.Process/Start",
        content=envelope(start_of("/bin/sh", "-c", "echo $$; exec head -c 1000000000 /dev/zero").to_json()),
        headers={"content-type": "application/connect+json"},
        timeout=30,
    ) as response:
        chunks = response.iter_raw()
        next(chunks)
        time.sleep(0.3)
        before = resident_kib()
        time.sleep(0.5)
        after = resident_kib()
    assert before < 120_000
    assert after - before < 4_000


def test_the_start_event_comes_first_and_keepalives_in_silence(guest: RunningGuest) -> None:
    events = stream(guest, "Start", start_of("/bin/sleep", "1.5"), {"keepalive-ping-interval": "1"})
    assert "start" in events[0]["event"]
    assert events[1] == {"event": {"keepalive": {}}}
    assert "end" in events[2]["event"]
    assert events[3] == {}


def test_unknown_processes_are_not_found(guest: RunningGuest, sandbox: Sandbox) -> None:
    with pytest.raises(NotFoundException, match="4000000000"):
        sandbox.commands.connect(4_000_000_000)
    (end,) = stream(guest, "Connect", process.ConnectRequest(process=process.ProcessSelector(tag="nobody")))
    assert end["error"]["code"] == "not_found"
    (end,) = stream(guest, "Connect", process.ConnectRequest())
    assert end["error"]["code"] == "invalid_argument"


def test_a_tag_selects_the_newest_process_that_has_it(guest: RunningGuest) -> None:
    for word in ("first", "second"):
        stream(guest, "Start", start_of("/bin/echo", word, tag="mine"))
    events = stream(guest, "Connect", process.ConnectRequest(process=process.ProcessSelector(tag="mine")))
    assert "end" in events[-2]["event"]


# -- input ----------------------------------------------------------------------------------------------------------


def test_stdin_is_streamed_and_closed(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat; sleep 0.5", background=True, stdin=True)
    sandbox.commands.stream_input(handle.pid, ["a", b"b" * 300_000, "c"])
    sandbox.commands.close_stdin(handle.pid)
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "a" + "b" * 300_000 + "c"


def test_without_stdin_the_program_reads_end_of_file_and_input_is_refused(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("cat; echo done").stdout == "done\n"
    handle = sandbox.commands.run("sleep 100", background=True)
    with pytest.raises(SandboxException, match="stdin not enabled or closed"):
        sandbox.commands.send_stdin(handle.pid, "x")
    handle.kill()


def test_input_that_nobody_reads_waits_and_does_not_block_others(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 100", background=True, stdin=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(sandbox.commands.send_stdin, handle.pid, b"x" * 1_000_000)
        assert sandbox.commands.run("echo free").stdout == "free\n"
        assert not waiting.done()
        handle.kill()
        with pytest.raises(SandboxException):
            waiting.result(10)


def test_input_is_refused_without_a_start_event_or_content(guest: RunningGuest) -> None:
    data = base64.b64encode(b"x").decode()
    for body in (b"", envelope(json.dumps({"data": {"input": {"stdin": data}}}).encode())):
        response = httpx.post(
            f"{guest.url}/process.Process/StreamInput",
            content=body,
            headers={"content-type": "application/connect+json"},
        )
        assert b"must begin with a start event" in response.content


# -- terminals ------------------------------------------------------------------------------------------------------


def pty_output(sandbox: Sandbox, *lines: str, resize: PtySize | None = None) -> str:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=20)
    if resize is not None:
        sandbox.pty.resize(handle.pid, resize)
    for line in lines:
        sandbox.pty.send_stdin(handle.pid, line.encode() + b"\n")
    seen: list[bytes] = []
    handle.wait(on_pty=seen.append)
    return b"".join(seen).decode()


def test_a_terminal_is_the_controlling_one_with_size_and_term(sandbox: Sandbox) -> None:
    shown = pty_output(sandbox, "stty size; echo $TERM; [ -t 0 ] && echo is-a-tty; echo x > /dev/tty && exit")
    assert "24 80" in shown
    assert "xterm" in shown
    assert "is-a-tty" in shown


def test_a_terminal_can_be_resized(sandbox: Sandbox) -> None:
    assert "50 132" in pty_output(sandbox, "stty size; exit", resize=PtySize(rows=50, cols=132))


def test_ctrl_c_reaches_the_program_in_the_foreground(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=20)
    sandbox.pty.send_stdin(handle.pid, b"echo sta''rted; sleep 1000\n")
    seen = b""
    for _, _, data in handle:
        seen += data or b""
        if b"started" in seen:
            wait_until(lambda: "sleep" in [name_of(pid) for pid in tree.members(handle.pid)])
            sandbox.pty.send_stdin(handle.pid, b"\x03")
            sandbox.pty.send_stdin(handle.pid, b"exit 0\n")
            seen = b""


def test_a_terminal_refuses_close_stdin_and_a_pipe_refuses_resize(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    with pytest.raises(SandboxException, match="Ctrl"):
        sandbox.commands.close_stdin(terminal.pid)
    assert sandbox.pty.kill(terminal.pid)
    piped = sandbox.commands.run("sleep 100", background=True)
    with pytest.raises(SandboxException, match="tty not assigned"):
        sandbox.pty.resize(piped.pid, PtySize(rows=1, cols=1))
    piped.kill()


# -- the list -------------------------------------------------------------------------------------------------------


def test_the_list_shows_what_runs_as_it_was_asked_for(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 100", background=True, envs={"A": "b"}, cwd="/")
    (found,) = [each for each in sandbox.commands.list() if each.pid == handle.pid]
    assert (found.cmd, found.args, found.envs, found.cwd) == ("/bin/bash", ["-l", "-c", "sleep 100"], {"A": "b"}, "/")
    handle.kill()
    wait_until(lambda: handle.pid not in [each.pid for each in sandbox.commands.list()])
