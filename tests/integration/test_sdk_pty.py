"""Pseudo-terminals through the published Python SDK."""

from __future__ import annotations

import threading

import pytest
from e2b import AsyncSandbox, CommandExitException, CommandHandle, NotFoundException, PtySize, Sandbox
from sdk_support import eventually, eventually_async


class Screen:
    """Reads a PTY in a thread and keeps what it showed."""

    def __init__(self, handle: CommandHandle) -> None:
        self.text = ""
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self._handle = handle
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            self._handle.wait(on_pty=self._add)
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()

    def _add(self, data: bytes) -> None:
        self.text += data.decode("utf-8", "replace")

    def shows(self, text: str) -> None:
        eventually(lambda: text in self.text, what=f"{text!r} on the screen, which shows {self.text!r}")


def _runs(sandbox: Sandbox, command: str) -> None:
    eventually(lambda: sandbox.commands.run(f"pgrep -fx '{command}' || true").stdout, what=f"{command!r} running")


def test_a_terminal_echoes_runs_and_exits(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"echo $((6*7))-answer\n")
    screen.shows("42-answer")
    sandbox.pty.send_stdin(handle.pid, b"exit 3\n")
    assert screen.ended.wait(20)
    assert isinstance(screen.error, CommandExitException)
    assert screen.error.exit_code == 3


def test_it_is_a_real_terminal_of_the_asked_size(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=31, cols=97))
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"tty && stty size && echo term=$TERM\n")
    screen.shows("/dev/pts/")
    screen.shows("31 97")
    screen.shows("term=xterm-256color")
    sandbox.pty.resize(handle.pid, PtySize(rows=50, cols=132))
    sandbox.pty.send_stdin(handle.pid, b"stty size\n")
    screen.shows("50 132")
    handle.kill()


def test_a_program_is_told_that_the_size_has_changed(sandbox: Sandbox) -> None:
    told = "signal.signal(signal.SIGWINCH, lambda *_: print('now', *os.get_terminal_size(), flush=True))"
    sandbox.files.write("size.py", f"import os, signal, time\n{told}\nprint('waits', flush=True)\ntime.sleep(600)\n")
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"python3 size.py\n")
    screen.shows("waits")
    sandbox.pty.resize(handle.pid, PtySize(rows=50, cols=132))
    screen.shows("now 132 50")
    handle.kill()


def test_unicode_is_typed_and_shown(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, "x='wörld 日本 🦆'; echo \"<$x>\" ${#x}\n".encode())
    screen.shows("<wörld 日本 🦆> 10")  # ten characters: the terminal's programs know that it is UTF-8
    handle.kill()


def test_user_cwd_and_envs_are_as_asked(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), user="root", cwd="/tmp", envs={"WORD": "value"})
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"echo [$(id -un)] [$(pwd)] [$WORD]\n")
    screen.shows("[root] [/tmp] [value]")
    handle.kill()


def test_control_c_interrupts_what_runs_in_it(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"echo started; sleep 86386; echo code=$?\n")
    screen.shows("started\r\n")
    sandbox.pty.send_stdin(handle.pid, b"\x03")
    sandbox.pty.send_stdin(handle.pid, b"echo after=$?\n")
    screen.shows("after=130")
    handle.kill()


def test_programs_reach_their_terminal_by_its_common_name(sandbox: Sandbox) -> None:
    """As ssh, git and every prompt for a password do, whatever their own input and output are."""
    handle = sandbox.pty.create(PtySize(rows=31, cols=97))
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"{ echo reached-$((6*7)) > /dev/tty; stty size < /dev/tty; } > /dev/null\n")
    screen.shows("reached-42")
    sandbox.files.write("ask.py", "import getpass\nprint(getpass.getpass('Say: ')[::-1])")
    sandbox.pty.send_stdin(handle.pid, b"python3 ask.py < /dev/null\n")
    screen.shows("Say: ")
    sandbox.pty.send_stdin(handle.pid, b"emases\n")
    screen.shows("sesame")
    handle.kill()


def test_a_terminal_within_a_terminal_is_the_one_of_those_in_it(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"script -q -c 'echo in=$(tty); echo to-the-inner > /dev/tty' seen; cat seen\n")
    screen.shows("in=/dev/pts/")
    eventually(lambda: screen.text.count("\nto-the-inner") == 2, what="shown once, and once more from the record")
    handle.kill()


def test_a_command_without_a_terminal_has_none(sandbox: Sandbox) -> None:
    result = sandbox.commands.run("echo x 2>&1 > /dev/tty; echo rc=$?")
    assert "rc=1" in result.stdout or "rc=2" in result.stdout
    inner = "import pty; pty.spawn(['sh', '-c', 'echo made-one > /dev/tty'])"
    assert "made-one" in sandbox.commands.run(f'python3 -c "{inner}"').stdout, "but it can make one"


def test_jobs_are_stopped_continued_and_interrupted(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"sleep 86385\n")
    _runs(sandbox, "sleep 86385")
    sandbox.pty.send_stdin(handle.pid, b"\x1a")
    screen.shows("Stopped")
    sandbox.pty.send_stdin(handle.pid, b"bg; jobs\n")
    screen.shows("Running")
    sandbox.pty.send_stdin(handle.pid, b"fg\n")
    eventually(lambda: screen.text.endswith("sleep 86385\r\n"), what="the job in the foreground")
    sandbox.pty.send_stdin(handle.pid, b"\x03")
    sandbox.pty.send_stdin(handle.pid, b"echo after=$?\n")
    screen.shows("after=130")
    handle.kill()


def test_a_program_that_wants_control_c_as_a_character_gets_it_so(sandbox: Sandbox) -> None:
    """As an editor does, and ssh, which passes it on."""
    sandbox.files.write("raw.py", "import os, tty\ntty.setraw(0)\nprint('raw', flush=True)\nprint(os.read(0, 9))\n")
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    screen = Screen(handle)
    for key, shown in ((b"\x03", r"b'\x03'"), (b"\x1a", r"b'\x1a'")):
        sandbox.pty.send_stdin(handle.pid, b"python3 raw.py; stty sane\n")
        eventually(lambda: screen.text.endswith("raw\n"), what="a terminal in raw mode")
        sandbox.pty.send_stdin(handle.pid, key)
        screen.shows(shown)
    sandbox.pty.send_stdin(handle.pid, b"sleep 86383\n")
    _runs(sandbox, "sleep 86383")
    sandbox.pty.send_stdin(handle.pid, b"\x03")
    sandbox.pty.send_stdin(handle.pid, b"echo after=$?\n")
    screen.shows("after=130")
    handle.kill()


def test_a_root_shell_in_a_terminal_has_job_control_and_its_size(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=31, cols=97))
    screen = Screen(handle)
    sandbox.pty.send_stdin(handle.pid, b"sudo -i\n")
    screen.shows("# ")
    sandbox.pty.send_stdin(handle.pid, b"echo [$(id -u)] [$(stty size < /dev/tty)]; sleep 86384\n")
    screen.shows("[0] [31 97]")
    _runs(sandbox, "sleep 86384")
    assert "no job control" not in screen.text
    sandbox.pty.send_stdin(handle.pid, b"\x1a")
    screen.shows("Stopped")
    sandbox.pty.resize(handle.pid, PtySize(rows=50, cols=132))
    sandbox.pty.send_stdin(handle.pid, b"kill %1; stty size; exit 7\n")
    screen.shows("50 132")
    sandbox.pty.send_stdin(handle.pid, b"echo left=$?-$(id -u)\n")
    screen.shows("left=7-1000")
    handle.kill()


def test_input_can_be_streamed(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    screen = Screen(handle)
    sandbox.pty.stream_input(handle.pid, ["echo one-$((1))\n", b"echo two-$((2))\n"])
    screen.shows("one-1")
    screen.shows("two-2")
    handle.kill()


def test_a_terminal_is_listed_and_killed(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    assert [(p.pid, p.cmd, p.args) for p in sandbox.commands.list()] == [(handle.pid, "/bin/bash", ["-i", "-l"])]
    screen = Screen(handle)
    assert sandbox.pty.kill(handle.pid) is True
    assert screen.ended.wait(20)
    assert isinstance(screen.error, CommandExitException)
    assert sandbox.pty.kill(handle.pid) is False


def test_one_can_leave_and_come_back(sandbox: Sandbox) -> None:
    handle = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.send_stdin(handle.pid, b"KEPT=here\n")
    handle.disconnect()
    again = sandbox.pty.connect(handle.pid)
    screen = Screen(again)
    sandbox.pty.send_stdin(handle.pid, b"echo still-$KEPT\n")
    screen.shows("still-here")
    again.kill()


def test_a_terminal_that_is_not_there_is_not_found(sandbox: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        sandbox.pty.connect(999_999)
    with pytest.raises(NotFoundException):
        sandbox.pty.resize(999_999, PtySize(rows=1, cols=1))
    with pytest.raises(NotFoundException):
        sandbox.pty.send_stdin(999_999, b"x")
    assert sandbox.pty.kill(999_999) is False


async def test_the_async_terminal_does_the_same(async_sandbox: AsyncSandbox) -> None:
    shown = bytearray()
    handle = await async_sandbox.pty.create(PtySize(rows=20, cols=70), on_data=shown.extend)
    await async_sandbox.pty.send_stdin(handle.pid, b"stty size\n")
    await eventually_async(lambda: b"20 70" in shown, what="the size")
    await async_sandbox.pty.resize(handle.pid, PtySize(rows=40, cols=140))
    async with async_sandbox.pty.stream_input(handle.pid) as keys:
        await keys.send("stty size\n")
    await eventually_async(lambda: b"40 140" in shown, what="the new size")
    assert await async_sandbox.pty.kill(handle.pid) is True
    with pytest.raises(CommandExitException):
        await handle.wait()
