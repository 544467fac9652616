"""The persistent shell's rules, on a real bash of this machine behind a real terminal.

The same shell through the SDK and a real sandbox is tested in tests/integration/test_runtime_defects.py.
"""

from __future__ import annotations

import os
import pty
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atoll.runtime.events.actions import CmdRunAction
from atoll.runtime.events.observations import CmdOutputObservation, ErrorObservation
from atoll.runtime.shell.protocol import Ended, MarkReader, Output, ShellState, Started, note_path
from atoll.runtime.shell.shell import Shell

SOFT_S = 0.4


class LocalTerminal:
    """bash on a pty of this machine: what SandboxTerminal is for a sandbox."""

    def __init__(self, cwd: str | None, bare: bool) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(cwd or "/")
            os.environ.update(TERM="xterm-256color", LC_ALL="C.UTF-8")
            os.execv("/bin/bash", ["bash", "--norc", "--noprofile", "-i"])
        self._writing = threading.Lock()
        self.losing, self.lost = False, b""

    def send(self, data: bytes) -> None:
        with self._writing:
            while data:
                data = data[os.write(self.fd, data) :]

    def follow(self, feed: Callable[[bytes], None], broke: Callable[[], None]) -> int | None:
        self.broke = broke
        while True:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                data = b""
            if not data:
                _, status = os.waitpid(self.pid, 0)
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            if self.losing:
                self.lost += data
            else:
                feed(data)

    def foreground(self) -> int | None:
        return os.tcgetpgrp(self.fd)

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


class LocalFiles:
    def read(self, path: str) -> bytes:
        return Path(path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        Path(path).write_bytes(data)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(LocalTerminal, LocalFiles(), cwd=str(tmp_path), soft_timeout_s=SOFT_S)
    yield made
    made.close()
    Path(note_path(made._session._token)).unlink(missing_ok=True)


def run(
    shell: Shell, command: str, *, is_input: bool = False, timeout: float | None = 20, blocking: bool = False
) -> CmdOutputObservation:
    found = shell.execute(CmdRunAction(command, is_input=is_input, timeout=timeout, blocking=blocking))
    assert isinstance(found, CmdOutputObservation), found
    return found


def test_output_and_exit_code(shell: Shell) -> None:
    found = run(shell, "echo out; echo err >&2; (exit 3)")
    assert (found.content, found.exit_code) == ("out\nerr", 3)
    assert found.metadata.suffix == "\n[The command completed with exit code 3.]"
    assert found.metadata.prefix == ""


def test_directory_variables_functions_and_status_survive(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    run(shell, "cd sub; export A=1; b=2; f() { echo f$b; }; false")
    found = run(shell, "echo $? $A $(f)")
    assert found.content == "1 1 f2"
    assert found.metadata.working_dir == str(tmp_path / "sub") == shell.cwd


@pytest.mark.parametrize("name", ["with space", "nöt äscii", "qu'ote\"s", "line\nbreak", "semi;colon"])
def test_any_directory_name_is_reported(shell: Shell, tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    run(shell, f"cd {_quote(str(tmp_path / name))}")
    assert shell.cwd == str(tmp_path / name)


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def test_a_heredoc_and_a_loop_are_one_command(shell: Shell) -> None:
    assert run(shell, "cat <<'EOF'\na $x `b` \\n !\nEOF").content == "a $x `b` \\n !"
    assert run(shell, "for i in 1 2\ndo\n  echo $i\ndone").content == "1\n2"


def test_every_character_arrives(shell: Shell) -> None:
    text = "".join(chr(code) for code in range(32, 127)) + "äß漢🙂\tx"
    assert run(shell, f"printf %s {_quote(text)}").content == text.replace("\t", "\t")


def test_a_command_too_long_for_the_terminal_arrives_whole(shell: Shell) -> None:
    text = "x" * 100_000
    assert run(shell, f"echo {text} | wc -c").content == "100001"
    assert not list(Path("/tmp").glob(".atoll-command-*"))


def test_several_commands_are_refused_with_the_list(shell: Shell) -> None:
    found = shell.execute(CmdRunAction("echo a\necho b"))
    assert isinstance(found, ErrorObservation)
    assert found.content == (
        "ERROR: Cannot execute multiple commands at once.\n"
        "Please run each command separately OR chain them into a single command via && or ;\n"
        "Provided commands:\n(1) echo a\n(2) echo b"
    )


def test_soft_timeout_reports_and_the_program_goes_on(shell: Shell) -> None:
    first = run(shell, "echo begin; sleep 1.2; echo end")
    assert (first.content, first.exit_code) == ("begin", -1)
    assert first.metadata.suffix.startswith("\n[The command has no new output after 0.4 seconds. You may wait longer")
    refused = run(shell, "ls")
    assert 'Your command "ls" is NOT executed. The previous command is still running' in refused.metadata.suffix
    assert refused.exit_code == -1
    last = run(shell, "", blocking=True)
    assert (last.content, last.exit_code) == ("end", 0)


def test_a_poll_shows_only_what_is_new(shell: Shell) -> None:
    run(shell, "echo 1; sleep 0.6; echo 2; sleep 5")
    found = run(shell, "")
    assert (found.content, found.exit_code) == ("2", -1)
    assert found.metadata.prefix == "[Below is the output of the previous command.]\n"
    assert run(shell, "C-c", is_input=True).exit_code == 130


def test_hard_timeout_is_minus_one_and_interrupt_ends_it(shell: Shell) -> None:
    found = run(shell, "while true; do echo tick; sleep 0.05; done", timeout=1)
    assert found.exit_code == -1
    assert found.content.startswith("tick")
    assert "[The command timed out after 1.0 seconds. You may wait longer" in found.metadata.suffix
    ended = run(shell, "C-c")
    assert ended.exit_code == 130
    assert "exit code 130. CTRL+C was sent.]" in ended.metadata.suffix
    assert run(shell, "echo ok").content == "ok"


def test_blocking_waits_through_silence(shell: Shell) -> None:
    assert run(shell, "sleep 1; echo done", blocking=True).content == "done"


def test_input_reaches_the_program(shell: Shell) -> None:
    asked = run(shell, 'read -p "Name? " n; echo "Hello $n"')
    assert (asked.content, asked.exit_code) == ("Name?", -1)
    answered = run(shell, "Ada", is_input=True)
    assert (answered.content, answered.exit_code) == ("Hello Ada", 0)


def test_end_of_file_and_suspend_keys(shell: Shell) -> None:
    run(shell, "cat")
    assert run(shell, "C-d", is_input=True).exit_code == 0
    run(shell, "sleep 100")
    stopped = run(shell, "C-z", is_input=True)
    assert stopped.exit_code == 148
    assert "CTRL+Z was sent" in stopped.metadata.suffix
    run(shell, "kill -9 %1")


@pytest.mark.parametrize(("command", "is_input"), [("", False), ("yes", True), ("C-c", True), ("C-d", False)])
def test_nothing_to_poll_or_to_interact_with(shell: Shell, command: str, is_input: bool) -> None:
    found = run(shell, command, is_input=is_input)
    word = "retrieve logs from" if command == "" else "interact with"
    assert found.content == f"ERROR: No previous running command to {word}."
    assert run(shell, "echo alive").content == "alive"


def test_input_for_a_program_that_has_ended_is_not_run_as_a_command(shell: Shell, tmp_path: Path) -> None:
    run(shell, "sleep 0.8")
    time.sleep(0.7)
    found = run(shell, "touch typed", is_input=True)
    assert found.exit_code == 0
    assert "was NOT sent" in found.metadata.suffix
    assert not (tmp_path / "typed").exists()


def test_input_that_nobody_read_is_not_run_as_a_command(shell: Shell, tmp_path: Path) -> None:
    run(shell, "sleep 1.5")
    run(shell, "touch typed-ahead", is_input=True)
    assert run(shell, "", blocking=True).exit_code == 0
    run(shell, "sleep 60")
    run(shell, "touch typed-before-interrupt", is_input=True)
    assert run(shell, "C-c").exit_code == 130
    assert run(shell, "ls -A").content == ""


def test_an_interrupt_in_the_midst_of_output_is_always_noticed(shell: Shell) -> None:
    for _ in range(15):
        found = run(shell, "i=0; while true; do i=$((i+1)); echo Line $i; sleep 0.001; done", timeout=0.1)
        assert found.exit_code == -1
        assert run(shell, "C-c").exit_code == 130


def test_a_program_that_handles_the_interrupt_gets_one_only(shell: Shell) -> None:
    handler = "signal.signal(2, lambda *a: print('asked to stop', flush=True))"
    code = f"import signal,time; {handler}; print('ready', flush=True); time.sleep(60)"
    found = run(shell, f'python3 -c "{code}"')
    while "ready" not in found.content:
        found = run(shell, "")
    assert run(shell, "C-c").content.count("asked to stop") == 1
    assert run(shell, "C-\\").exit_code == 131


def test_the_end_of_an_unfinished_command_is_told_with_the_next(shell: Shell) -> None:
    run(shell, "sleep 0.8; echo late; (exit 4)")
    time.sleep(0.7)
    found = run(shell, "echo next")
    assert found.content == "next"
    assert "late\n[The command completed with exit code 4.]" in found.metadata.prefix


def test_a_shell_that_exits_is_replaced_and_it_is_told(shell: Shell, tmp_path: Path) -> None:
    run(shell, "x=1")
    found = run(shell, "echo bye; exit 7")
    assert (found.content, found.exit_code) == ("bye\nexit", 7)
    assert "A new one was started" in found.metadata.suffix
    assert run(shell, "echo [$x] $PWD").content == f"[] {tmp_path}"


def test_a_shell_whose_directory_is_gone_starts_elsewhere(shell: Shell, tmp_path: Path) -> None:
    run(shell, "set -e")
    assert run(shell, "false").exit_code == 1
    assert run(shell, "echo on").content == "on"


@pytest.mark.parametrize(
    "setting",
    [
        "PS1='(venv) $ '",
        "PROMPT_COMMAND='echo prompt'",
        "set -o vi",
        "set -o emacs",
        "set -u",
        "export PS1",
        "IFS=,",
        "set -f",
        "trap 'echo dbg' DEBUG",
        "set -e",
    ],
)
def test_the_users_own_settings_change_nothing(shell: Shell, setting: str) -> None:
    run(shell, setting)
    found = run(shell, "echo hi")
    assert found.content.replace("dbg", "").strip() == "hi"
    assert found.exit_code == 0
    run(shell, "sleep 50")
    assert run(shell, "C-c", is_input=True).exit_code == 130
    assert run(shell, "echo still").exit_code == 0


def test_trace_shows_the_users_command_only(shell: Shell) -> None:
    run(shell, "set -x")
    assert "__atoll" not in run(shell, "echo hi").content


def test_output_redirected_for_good_still_ends(shell: Shell, tmp_path: Path) -> None:
    run(shell, "exec >log 2>&1")
    assert run(shell, "echo hidden").exit_code == 0
    assert (tmp_path / "log").read_text() == "hidden\n"


def test_a_hundred_thousand_lines(shell: Shell) -> None:
    found = run(shell, "seq 1 100000")
    assert found.exit_code == 0
    assert found.metadata.prefix == (
        "[Previous command outputs are truncated. Showing the last 11000 lines of the output below.]\n"
    )
    assert found.content.startswith("89001\n")
    assert found.content.endswith("\n100000")
    assert "[... Observation truncated due to length ...]" in found.content


def test_background_output_is_told_with_the_next_command(shell: Shell) -> None:
    run(shell, "(sleep 0.3; echo from behind) &")
    time.sleep(0.6)
    found = run(shell, "echo front")
    assert found.content == "front"
    assert "from behind" in found.metadata.prefix


def test_metadata_names_user_host_and_last_background_process(shell: Shell) -> None:
    found = run(shell, "sleep 30 & whoami; hostname -s; echo $!")
    user, host, pid = found.content.split("\n")[-3:]
    assert (found.metadata.username, found.metadata.hostname, found.metadata.pid) == (user, host, int(pid))
    run(shell, "kill %1")


def lose(shell: Shell, seconds: float) -> LocalTerminal:
    """The shell's terminal, whose stream breaks now and goes on after `seconds`."""
    terminal = shell._session.link
    assert isinstance(terminal, LocalTerminal)
    terminal.losing = True

    def mend() -> None:
        terminal.losing = False
        terminal.broke()

    timer = threading.Timer(seconds, mend)
    timer.daemon = True
    timer.start()
    return terminal


@pytest.mark.parametrize("settings", [":", "set -e", "set -C", "set -u"])
def test_a_command_whose_end_was_in_a_gap_of_the_stream_ends(shell: Shell, tmp_path: Path, settings: str) -> None:
    run(shell, settings)
    lose(shell, 1.0)
    found = run(shell, "echo unheard; cd /usr", blocking=True)
    assert (found.exit_code, found.metadata.working_dir) == (0, "/usr")
    assert found.metadata.suffix.endswith("some of its output may be missing.]")
    found = run(shell, "echo heard")
    assert (found.content, found.metadata.prefix, "missing" in found.metadata.suffix) == ("heard", "", False)


def test_a_command_that_goes_on_after_a_gap_ends_by_its_own_mark_with_its_output(shell: Shell, tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    terminal = lose(shell, 60)

    def mend() -> None:
        while b"lost\r" not in terminal.lost:
            time.sleep(0.05)
        terminal.losing = False
        terminal.broke()
        go_on.touch()

    after = threading.Thread(target=mend)
    after.start()
    found = run(
        shell, f"echo lost; until [ -e {go_on} ]; do sleep 0.05; done; echo kept; (exit 3)", blocking=True, timeout=60
    )
    after.join()
    assert (found.content, found.exit_code) == ("kept", 3)
    assert "may be missing" in found.metadata.suffix


def test_a_gap_without_a_command_is_nothing(shell: Shell) -> None:
    terminal = lose(shell, 60)
    terminal.losing = False
    terminal.broke()
    found = run(shell, "echo on")
    assert (found.content, "missing" in found.metadata.suffix) == ("on", False)


def test_a_null_byte_is_refused(shell: Shell) -> None:
    assert isinstance(shell.execute(CmdRunAction("echo a\0b")), ErrorObservation)


def test_marks_are_found_however_the_stream_is_cut() -> None:
    stream = (
        b"noise\x1b]7771;T;go;7\x07out \x1b]7771;not ours\x07put"
        b"\x1b]7771;T;end;7\x1f3\x1f\x1fprompt\x1fu\x1fh\x1f/py\x1f/a\r\nb\x1f;T\x07idle"
    )
    state = ShellState(3, -1, True, "u", "h", "/py", "/a\nb")
    for size in (1, 2, 3, 7, len(stream)):
        reader = MarkReader("T")
        events = [event for at in range(0, len(stream), size) for event in reader.feed(stream[at : at + size])]
        text: dict[int | None, bytes] = {}
        for event in events:
            if isinstance(event, Output):
                text[event.command_id] = text.get(event.command_id, b"") + event.data
        assert text == {None: b"noiseidle", 7: b"out \x1b]7771;not ours\x07put"}
        assert [event for event in events if not isinstance(event, Output)] == [Started(7), Ended(7, state)]
