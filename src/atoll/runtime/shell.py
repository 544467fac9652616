"""The persistent shell of a runtime: one interactive bash on a terminal in the sandbox, from action to observation.

Owns what is running, its output so far, the timeouts, input and keys, and a new shell when the old one ended. It does
not own the terminal (`terminal_link.py`) or the marks in its stream (`shell_protocol.py`). Texts are OpenHands' own.

    idle ──command──► running ──end mark──► idle            output arrives in the link's thread and wakes the waiter:
                         │ soft or hard timeout              nothing here polls
                         ▼
                      running, reported with exit code -1: polls, input and keys reach it, other commands are refused
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from atoll.runtime.actions import CmdRunAction
from atoll.runtime.bash_split import split_commands
from atoll.runtime.errors import AgentRuntimeError, AgentRuntimeUnavailableError
from atoll.runtime.observations import CmdOutputMetadata, CmdOutputObservation, ErrorObservation
from atoll.runtime.shell_protocol import (
    Ended,
    MarkReader,
    Output,
    ShellState,
    Started,
    command_lines,
    file_lines,
    key_bytes,
    setup_lines,
)
from atoll.runtime.terminal import render

TIMEOUT_MESSAGE = (
    "You may wait longer to see additional output by sending empty command '', "
    "send other commands to interact with the current process, "
    'send keys ("C-c", "C-z", "C-d") to interrupt/kill the previous command before sending your new command, '
    "or use the timeout parameter in execute_bash for future commands."
)
CONTINUED = "[Below is the output of the previous command.]\n"
HISTORY_LINES = 11_000
"""Lines of one command's output that are kept: OpenHands' terminal has a history of 10,000 and a screen of 1,000."""
MAX_OUTPUT_BYTES = 16 * 1024 * 1024
MAX_IDLE_BYTES = 8 * 1024
TYPED_MAX = 24 * 1024
"""Commands longer than this go by a file instead of the terminal's input queue."""
INTERRUPT, INTERRUPT_S, INTERRUPT_TRIES = b"\x03", 0.3, 10
START_TIMEOUT_S = 15.0
_RIGHT_HOME = 'IFS=: read -r _ _ _ _ _ HOME _ < <(getent passwd "$UID"); export HOME; unset _'
DEFAULT_SOFT_TIMEOUT_S = 10.0


_log = logging.getLogger("atoll.runtime")


class TerminalLink(Protocol):
    """A terminal with a login shell on it. Every call may raise AgentRuntimeDisconnectedError."""

    def send(self, data: bytes) -> None:
        """Types `data`."""
        ...

    def follow(self, feed: Callable[[bytes], None]) -> int | None:
        """Hands on output until the shell has ended; its exit code, or None if it is not known."""
        ...

    def foreground(self) -> int | None:
        """The process group that the terminal's keys go to, None if it cannot be told."""
        ...

    def kill(self) -> None:
        """Ends the shell and what runs in it. Idempotent."""
        ...


OpenTerminal = Callable[[str | None, bool], TerminalLink]
"""(cwd, bare) → a new terminal. cwd None is the user's home; bare: without the user's start-up files."""

WriteFile = Callable[[str, bytes], None]


@dataclass(frozen=True, slots=True)
class ShellEnded:
    """The shell itself is gone, with its exit code if that is known."""

    exit_code: int | None


class _Session:
    """One bash: its terminal, the thread that follows it, and what is known of the command in it.

    Everything after `_changed` is guarded by it.
    """

    def __init__(self, link: TerminalLink) -> None:
        self.link = link
        self._token = secrets.token_hex(8)
        self._marks = MarkReader(self._token)
        self._changed = threading.Condition()
        self._command_id = 0
        self._open = False
        self._output = bytearray()
        self._dropped = False
        self._idle = bytearray()
        self._state: ShellState | None = None
        self._gone: ShellEnded | None = None
        self._failure: Exception | None = None
        self._changed_at = time.monotonic()
        threading.Thread(target=self._follow, name="atoll-shell", daemon=True).start()

    def begin(self) -> ShellState:
        """Sets the shell up. Raises AgentRuntimeError if it does not answer."""
        self._open = True
        self.link.send(setup_lines(self._token))
        found = self.wait(soft_s=None, hard_s=START_TIMEOUT_S, since=time.monotonic())
        if not isinstance(found, ShellState):
            raise AgentRuntimeError(
                "the sandbox's shell did not start; its output was: "
                + render(bytes(self._idle).decode("utf-8", "replace"))
            )
        with self._changed:
            self._idle.clear()
        return found

    def start(self, command: str, write_file: WriteFile) -> None:
        """Types the command. Raises ValueError for one that no shell can be given."""
        next_id = self._command_id + 1
        lines = command_lines(next_id, command)
        if len(lines) > TYPED_MAX:
            path = f"/tmp/.atoll-command-{self._token}-{next_id}"
            write_file(path, command.encode("utf-8", "surrogateescape"))
            lines = file_lines(next_id, path)
        with self._changed:
            self._command_id, self._open, self._state = next_id, True, None
            self._output.clear()
            self._dropped = False
            self._changed_at = time.monotonic()
        self.link.send(lines)

    def take_idle_output(self) -> bytes:
        """What came between the last command and this one: background processes, and the echo of our own lines."""
        with self._changed:
            data = bytes(self._idle)
            self._idle.clear()
        return data

    def output(self) -> tuple[bytes, bool]:
        """All output of the command so far, and whether its beginning had to be dropped."""
        with self._changed:
            return bytes(self._output), self._dropped

    def finished(self) -> ShellState | ShellEnded | None:
        """How the command ended, None while it runs. Raises what lost the terminal."""
        with self._changed:
            return self._finished()

    def wait(self, *, soft_s: float | None, hard_s: float | None, since: float) -> ShellState | ShellEnded | str:
        """Until the command has ended, or "soft" (no output for so long) or "hard" (so long since `since`)."""
        with self._changed:
            while (found := self._finished()) is None:
                now = time.monotonic()
                quiet_until = None if soft_s is None else max(self._changed_at, since) + soft_s
                deadline = None if hard_s is None else since + hard_s
                if quiet_until is not None and now >= quiet_until:
                    return "soft"
                if deadline is not None and now >= deadline:
                    return "hard"
                ends = [end - now for end in (quiet_until, deadline) if end is not None]
                self._changed.wait(min(ends) if ends else None)
            return found

    def _finished(self) -> ShellState | ShellEnded | None:
        if self._state is not None:
            return self._state
        if self._failure is not None:
            raise self._failure
        return self._gone

    def _follow(self) -> None:
        gone: ShellEnded | None = None
        failure: Exception | None = None
        try:
            gone = ShellEnded(self.link.follow(self._feed))
        except Exception as error:
            failure = error
        with self._changed:
            self._gone, self._failure = gone, failure
            self._changed.notify_all()

    def _feed(self, data: bytes) -> None:
        with self._changed:
            for event in self._marks.feed(data):
                match event:
                    case Output(command_id=None, data=piece):
                        self._idle += piece
                        del self._idle[:-MAX_IDLE_BYTES]
                    case Output(data=piece):
                        self._output += piece
                        self._changed_at = time.monotonic()
                        self._trim()
                    case Started():
                        self._changed_at = time.monotonic()
                    case Ended(command_id=command_id, state=state) if command_id == self._command_id and self._open:
                        self._state, self._open = state, False
                        self._changed.notify_all()

    def _trim(self) -> None:
        if len(self._output) > MAX_OUTPUT_BYTES:
            cut = self._output.find(b"\n", len(self._output) - MAX_OUTPUT_BYTES // 2)
            del self._output[: cut + 1 if cut >= 0 else MAX_OUTPUT_BYTES // 2]
            self._dropped = True


class Shell:
    """See the module. Not for use by several threads at once: the runtime runs one action at a time."""

    def __init__(
        self,
        open_terminal: OpenTerminal,
        write_file: WriteFile,
        *,
        cwd: str | None = None,
        soft_timeout_s: float = DEFAULT_SOFT_TIMEOUT_S,
    ) -> None:
        self._open_terminal = open_terminal
        self._write_file = write_file
        self._soft_s = soft_timeout_s
        self._first_cwd = cwd
        self._reported = ""
        self._busy = False
        self._bare = False
        self._session, self.state = self._begin(cwd)

    @property
    def cwd(self) -> str:
        """Where the shell was when the last command ended."""
        return self.state.cwd

    @property
    def is_busy(self) -> bool:
        """A command was reported with exit code -1 and nobody has been told of its end yet."""
        return self._busy

    def close(self) -> None:
        """Ends the shell. Idempotent."""
        self._session.link.kill()

    def execute(self, action: CmdRunAction) -> CmdOutputObservation | ErrorObservation:
        """Runs a command, or passes input to the one that runs. Raises AgentRuntimeDisconnectedError only."""
        command = action.command.strip()
        key = key_bytes(command)
        if not self._busy:
            if command == "":
                return _complaint("ERROR: No previous running command to retrieve logs from.")
            if action.is_input or key is not None:
                return _complaint("ERROR: No previous running command to interact with.")
        commands = [] if action.is_input else split_commands(command)
        if len(commands) > 1:
            listed = "\n".join(f"({number}) {text}" for number, text in enumerate(commands, 1))
            return ErrorObservation(
                "ERROR: Cannot execute multiple commands at once.\n"
                "Please run each command separately OR chain them into a single command via && or ;\n"
                f"Provided commands:\n{listed}"
            )
        since = time.monotonic()
        if not self._busy:
            return self._run(action, command, since)
        ended = self._session.finished()
        if command == "" or action.is_input or key is not None:
            if ended is None and key == INTERRUPT:
                self._interrupt()
            elif ended is None and command != "":
                self._session.link.send(key if key is not None else command.encode() + b"\r")
            observation = self._wait(action, command, since)
            if ended is not None and command != "":
                note = f'\n[Your input "{command}" was NOT sent: the program had already ended.]'
                return replace(
                    observation, metadata=replace(observation.metadata, suffix=observation.metadata.suffix + note)
                )
            return observation
        if ended is None:
            return self._refuse(action, command)
        before = self._finish(action, "", ended)
        told = f"{CONTINUED}{before.content}{before.metadata.suffix}\n"
        return _with_prefix(self._run(action, command, since), told)

    def _interrupt(self) -> None:
        """C-c, again where it met a job that was just ending: in a loop of short programs it would be lost.

        A program that handles the interrupt stays the foreground job and gets one only.
        """
        link = self._session.link
        for _ in range(INTERRUPT_TRIES):
            job = link.foreground()
            link.send(INTERRUPT)
            found = self._session.wait(soft_s=None, hard_s=INTERRUPT_S, since=time.monotonic())
            if not isinstance(found, str) or job is None or link.foreground() == job:
                return

    def _begin(self, cwd: str | None) -> tuple[_Session, ShellState]:
        try:
            self._bare = False
            return self._begin_one(cwd, bare=False)
        except AgentRuntimeUnavailableError:
            raise
        except AgentRuntimeError as error:
            _log.warning("%s; trying without the user's start-up files", error)
            self._bare = True
            return self._begin_one(cwd, bare=True)

    def _begin_one(self, cwd: str | None, *, bare: bool) -> tuple[_Session, ShellState]:
        session = _Session(self._open_terminal(cwd, bare))
        try:
            state = session.begin()
            if bare:
                session.start(_RIGHT_HOME, self._write_file)
                session.wait(soft_s=None, hard_s=START_TIMEOUT_S, since=time.monotonic())
            return session, state
        except BaseException:
            session.link.kill()
            raise

    def _restart(self) -> None:
        for cwd in (self.state.cwd, self._first_cwd, None):
            try:
                self._session, self.state = self._begin(cwd)
                return
            except ValueError:
                continue  # that directory is no more

    def _run(self, action: CmdRunAction, command: str, since: float) -> CmdOutputObservation | ErrorObservation:
        self._reported = ""
        if isinstance(self._session.finished(), ShellEnded):
            self._restart()
        idle = "" if self.state.shows_prompt else _background_output(self._session.take_idle_output())
        try:
            self._session.start(command, self._write_file)
        except ValueError as error:
            return ErrorObservation(f"ERROR: {error}")
        self._busy = True  # also if we are interrupted while we wait
        observation = self._wait(action, command, since)
        if idle:
            return _with_prefix(observation, f"[Output of background processes since the last command.]\n{idle}\n")
        return observation

    def _wait(self, action: CmdRunAction, command: str, since: float) -> CmdOutputObservation:
        found = self._session.wait(
            soft_s=None if action.blocking else self._soft_s, hard_s=action.timeout or None, since=since
        )
        if not isinstance(found, str):
            return self._finish(action, command, found)
        self._busy = True
        if found == "soft":
            why = f"The command has no new output after {self._soft_s:g} seconds. "
        else:
            why = f"The command timed out after {float(action.timeout or 0)} seconds. "
        return self._report(action, command, CmdOutputMetadata(suffix=f"\n[{why}{TIMEOUT_MESSAGE}]"), CONTINUED)

    def _finish(self, action: CmdRunAction, command: str, ended: ShellState | ShellEnded) -> CmdOutputObservation:
        key = key_bytes(command)
        sent = "" if key is None else f" CTRL+{command[-1].upper()} was sent."
        last, self._busy = self._session, False
        if isinstance(ended, ShellState):
            self.state, code, note = ended, ended.exit_code, ""
        else:
            code = -1 if ended.exit_code is None else ended.exit_code
            self._restart()
            note = f"\n[The shell itself ended. A new one was started in {self.cwd}: variables and functions are gone.]"
            if self._bare:
                note += "\n[The start-up files of the shell end or block it; they were not read. Mend ~/.bashrc.]"
        metadata = CmdOutputMetadata(
            exit_code=code,
            pid=self.state.pid,
            username=self.state.username or None,
            hostname=self.state.hostname or None,
            working_dir=self.state.cwd or None,
            py_interpreter_path=self.state.python or None,
            suffix=f"\n[The command completed with exit code {code}.{sent}]{note}",
        )
        observation = self._report(action, command, metadata, "", last)
        self._reported = ""
        return observation

    def _refuse(self, action: CmdRunAction, command: str) -> CmdOutputObservation:
        suffix = (
            f'\n[Your command "{command}" is NOT executed. '
            "The previous command is still running - You CANNOT send new commands until the previous command is "
            "completed. By setting `is_input` to `true`, you can interact with the current process: "
            f"{TIMEOUT_MESSAGE}]"
        )
        return self._report(action, command, CmdOutputMetadata(suffix=suffix), CONTINUED)

    def _report(
        self,
        action: CmdRunAction,
        command: str,
        metadata: CmdOutputMetadata,
        continued: str,
        session: _Session | None = None,
    ) -> CmdOutputObservation:
        """An observation of what is new since the last one of the same command."""
        raw, dropped = (session or self._session).output()
        text = render(raw.decode("utf-8", "replace")).rstrip()
        lines = text.split("\n")
        prefix = ""
        if dropped or len(lines) > HISTORY_LINES:
            lines = lines[-HISTORY_LINES:]
            text = "\n".join(lines)
            prefix = (
                f"[Previous command outputs are truncated. Showing the last {len(lines)} lines of the output below.]\n"
            )
        content = text
        if self._reported:
            content = text.removeprefix(self._reported).lstrip("\n")
            prefix = continued or prefix
        self._reported = text
        if action.is_input and command:
            content = content.lstrip().removeprefix(command).lstrip()
        return CmdOutputObservation(
            content, command=command, metadata=replace(metadata, prefix=prefix), hidden=action.hidden
        )


T = TypeVar("T", CmdOutputObservation, CmdOutputObservation | ErrorObservation)


def _with_prefix(observation: T, prefix: str) -> T:
    if isinstance(observation, ErrorObservation):
        return observation
    metadata = replace(observation.metadata, prefix=prefix + observation.metadata.prefix)
    return replace(observation, metadata=metadata)


def _complaint(text: str) -> CmdOutputObservation:
    return CmdOutputObservation(text, command="")


def _background_output(raw: bytes) -> str:
    """Idle output without the echo of our own lines and bash's notices about jobs."""
    lines = render(raw.decode("utf-8", "replace")).split("\n")
    kept = [line for line in lines if "__atoll_" not in line and not _is_job_notice(line)]
    return "\n".join(kept).strip()


def _is_job_notice(line: str) -> bool:
    return line.startswith("[") and line[1:2].isdigit() and "]" in line[:6]
