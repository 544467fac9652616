"""The persistent shell of a runtime: one interactive bash on a terminal in the sandbox, from action to observation.

Owns whether a command runs, the timeouts, input and keys, the texts about it, and a new shell when the old one ended.
The shell itself and its output are `shell_session.py`'s. Texts are OpenHands' own.

    idle ──command──► running ──end mark──► idle            output arrives in the link's thread and wakes the waiter:
                         │ soft or hard timeout              nothing here polls
                         ▼
                      running, reported with exit code -1: polls, input and keys reach it, other commands are refused
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TypeVar

from atoll.runtime.errors import AgentRuntimeError, AgentRuntimeUnavailableError
from atoll.runtime.events.actions import CmdRunAction
from atoll.runtime.events.observations import CmdOutputMetadata, CmdOutputObservation, ErrorObservation
from atoll.runtime.shell.bash_split import split_commands
from atoll.runtime.shell.protocol import ShellState, key_bytes
from atoll.runtime.shell.session import START_TIMEOUT_S, Files, OpenTerminal, Session, ShellEnded
from atoll.runtime.shell.terminal import render

TIMEOUT_MESSAGE = (
    "You may wait longer to see additional output by sending empty command '', "
    "send other commands to interact with the current process, "
    'send keys ("C-c", "C-z", "C-d") to interrupt/kill the previous command before sending your new command, '
    "or use the timeout parameter in execute_bash for future commands."
)
TORN = "\n[The connection to the sandbox broke while the command ran: some of its output may be missing.]"
CONTINUED = "[Below is the output of the previous command.]\n"
HISTORY_LINES = 11_000
"""Lines of one command's output that are kept: OpenHands' terminal has a history of 10,000 and a screen of 1,000."""
INTERRUPT, INTERRUPT_S, INTERRUPT_TRIES = b"\x03", 0.3, 10
_RIGHT_HOME = 'IFS=: read -r _ _ _ _ _ HOME _ < <(getent passwd "$UID"); export HOME; unset _'
DEFAULT_SOFT_TIMEOUT_S = 10.0


_log = logging.getLogger("atoll.runtime")


class Shell:
    """See the module. Not for use by several threads at once: the runtime runs one action at a time."""

    def __init__(
        self,
        open_terminal: OpenTerminal,
        files: Files,
        *,
        cwd: str | None = None,
        soft_timeout_s: float = DEFAULT_SOFT_TIMEOUT_S,
    ) -> None:
        self._open_terminal = open_terminal
        self._files = files
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
        prefix = f"{CONTINUED}{before.content}{before.metadata.suffix}\n"
        return _with_prefix(self._run(action, command, since), prefix)

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

    def _begin(self, cwd: str | None) -> tuple[Session, ShellState]:
        try:
            self._bare = False
            return self._begin_one(cwd, bare=False)
        except AgentRuntimeUnavailableError:
            raise
        except AgentRuntimeError as error:
            _log.warning("%s; trying without the user's start-up files", error)
            self._bare = True
            return self._begin_one(cwd, bare=True)

    def _begin_one(self, cwd: str | None, *, bare: bool) -> tuple[Session, ShellState]:
        session = Session(self._open_terminal(cwd, bare), self._files)
        try:
            state = session.begin()
            if bare:
                session.start(_RIGHT_HOME)
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
            self._session.start(command)
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
        suffix = f"\n[{why}{TIMEOUT_MESSAGE}]{TORN if self._session.torn else ''}"
        return self._report(action, command, CmdOutputMetadata(suffix=suffix), CONTINUED)

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
        if last.torn:
            note += TORN
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
        session: Session | None = None,
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
