"""One bash on a terminal: the thread that follows it, and what is known of the command that runs in it.

Owns the output so far, how the command ended, and coming through a stream that broke. It knows nothing of actions and
observations (`shell.py`), of how a terminal is opened (`terminal_link.py`) or of how marks look (`shell_protocol.py`).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from atoll.runtime.errors import AgentRuntimeError
from atoll.runtime.shell.protocol import (
    Ended,
    MarkReader,
    Output,
    ShellState,
    Started,
    command_lines,
    file_lines,
    note_path,
    setup_lines,
)
from atoll.runtime.shell.terminal import render

MAX_OUTPUT_BYTES = 16 * 1024 * 1024
MAX_IDLE_BYTES = 8 * 1024
TYPED_MAX = 24 * 1024
"""Commands longer than this go by a file instead of the terminal's input queue."""
START_TIMEOUT_S = 15.0
FIRST_LOOK_S, LAST_LOOK_S = 1.0, 10.0


class TerminalLink(Protocol):
    """A terminal with a login shell on it. Every call may raise AgentRuntimeDisconnectedError."""

    def send(self, data: bytes) -> None:
        """Types `data`."""
        ...

    def follow(self, feed: Callable[[bytes], None], broke: Callable[[], None]) -> int | None:
        """Hands on output until the shell has ended; its exit code, or None if it is not known.

        `broke` is called when the stream was interrupted and goes on: output may be missing there.
        """
        ...

    def foreground(self) -> int | None:
        """The process group that the terminal's keys go to, None if it is not known."""
        ...

    def kill(self) -> None:
        """Ends the shell and what runs in it. Idempotent."""
        ...


OpenTerminal = Callable[[str | None, bool], TerminalLink]
"""(cwd, bare) → a new terminal. cwd None is the user's home; bare: without the user's start-up files."""


class Files(Protocol):
    """Files where the shell runs. Both raise OSError's kinds, or AgentRuntimeError for a lost sandbox."""

    def read(self, path: str) -> bytes: ...

    def write(self, path: str, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class ShellEnded:
    """The shell itself is gone, with its exit code if that is known."""

    exit_code: int | None


class Session:
    """One bash: its terminal, the thread that follows it, and what is known of the command in it.

    Everything after `_changed` is guarded by it.
    """

    def __init__(self, link: TerminalLink, files: Files) -> None:
        self.link = link
        self._files = files
        self._token = secrets.token_hex(8)
        self._marks = MarkReader(self._token)
        self._changed = threading.Condition()
        self._command_id = 0
        self._open = False
        self._output = bytearray()
        self._dropped = False
        self._torn = False
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

    def start(self, command: str) -> None:
        """Types the command. Raises ValueError for one that no shell can be given."""
        next_id = self._command_id + 1
        lines = command_lines(next_id, command)
        if len(lines) > TYPED_MAX:
            path = f"/tmp/.atoll-command-{self._token}-{next_id}"
            self._files.write(path, command.encode("utf-8", "surrogateescape"))
            lines = file_lines(next_id, path)
        with self._changed:
            self._command_id, self._open, self._state = next_id, True, None
            self._output.clear()
            self._dropped = self._torn = False
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

    @property
    def torn(self) -> bool:
        """Whether the stream broke while the command ran, so that output may be missing."""
        with self._changed:
            return self._torn

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
            gone = ShellEnded(self.link.follow(self._feed, self._broke))
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
                        self._output.clear()
                        self._changed_at = time.monotonic()
                    case Ended() as end:
                        self._end(end)

    def _end(self, end: Ended) -> None:
        if end.command_id == self._command_id and self._open:
            self._state, self._open = end.state, False
            self._changed.notify_all()

    def _broke(self) -> None:
        with self._changed:
            self._marks.resume(self._command_id if self._open else None)
            if not self._open:
                return
            self._torn = True
        threading.Thread(target=self._look_for_end, name="atoll-shell-note", daemon=True).start()

    def _look_for_end(self) -> None:
        """After the stream broke: the mark of the end may have been in the gap, but the shell leaves a note of it."""
        looked_for, pause_s = self._command_id, FIRST_LOOK_S
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._is_open(looked_for), pause_s)
                if not self._is_open(looked_for):
                    return
            end = self._noted_end()
            with self._changed:
                quiet = time.monotonic() - self._changed_at >= FIRST_LOOK_S  # else the mark itself is on its way
                if end is not None and end.command_id == looked_for and quiet and self._is_open(looked_for):
                    self._end(end)
                    return
            if end is None or end.command_id != looked_for:
                pause_s = min(pause_s * 2, LAST_LOOK_S)

    def _is_open(self, command_id: int) -> bool:
        return self._open and self._command_id == command_id and self._gone is None and self._failure is None

    def _noted_end(self) -> Ended | None:
        try:
            data = self._files.read(note_path(self._token))
        except (OSError, AgentRuntimeError):
            return None
        return next((event for event in MarkReader(self._token).feed(data) if isinstance(event, Ended)), None)

    def _trim(self) -> None:
        if len(self._output) > MAX_OUTPUT_BYTES:
            cut = self._output.find(b"\n", len(self._output) - MAX_OUTPUT_BYTES // 2)
            del self._output[: cut + 1 if cut >= 0 else MAX_OUTPUT_BYTES // 2]
            self._dropped = True
