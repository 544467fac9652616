"""A Bash context: one interactive bash, its cells on a pipe of their own; no Jupyter. Same calls as `Kernel`.

    cell ─► a pipe ─► `read`, `eval` in the shell ─► lines of output ─► its status on another pipe ─► done

Interactive, because such a shell answers SIGINT as people expect: the cell is given up, the shell and its variables
stay. It has no terminal, so programs in it print plain text. `PROMPT_COMMAND` reports the exit status, after an
interrupt as well. A cell costs a tenth of a millisecond where a Jupyter kernel for bash costs a hundred.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import signal
from collections.abc import Callable

from atoll.guest.interpreter import jupyter
from atoll.guest.interpreter.kernel import (
    KernelDied,
    KernelPlace,
    KernelStartFailed,
    Sink,
    how_it_ended,
)
from atoll.guest.interpreter.kernelspecs import BASH, KernelSpec
from atoll.guest.pid1.reaper import Exit, Reaper
from atoll.guest.process import tree
from atoll.guest.process.spawn import spawn

START_TIMEOUT_S = 60.0
_READ_SIZE = 64 * 1024
_MOST_AT_ONCE = 16
"""Reads in a row of one stream, so that a program which never stops printing does not keep the guest."""
_STATUS = re.compile(rb"([0-9]{1,3}) ([0-9]*)\0")
_MOST_STATUS = 4096
_INTERRUPTED = 128 + signal.SIGINT


class BashKernel:
    """A shell, live from `start` until it ends by itself or by `end`; `ended` then says how. Never started twice."""

    def __init__(self, place: KernelPlace, reaper: Reaper) -> None:
        self.spec: KernelSpec = BASH
        self.ended: str | None = None
        """How it ended, for people; None while it lives."""
        self.when_ended: Callable[[], None] = lambda: None
        """Called once, when it has ended by itself or by `end`."""
        self.pid = 0
        self._place = place
        self._reaper = reaper
        self._loop = asyncio.get_running_loop()
        self._exited = False
        self._count = self._sent = 0
        self._sink: Sink | None = None
        self._done: asyncio.Future[int] | None = None
        self._unsent = b""
        self._status = b""
        self._paused = False
        self._commands = self._cells = self._statuses = -1
        self._outputs: dict[int, tuple[str, codecs.IncrementalDecoder]] = {}

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when it takes cells. Raises KernelStartFailed, CwdMissing; then nothing of it is left."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                prepare = self._launch()
                await self._until_status(prepare)
        except (OSError, TimeoutError, KernelDied) as error:
            reason = f"bash did not start: {error or type(error).__name__}"
            self.end(reason)
            raise KernelStartFailed(reason) from error
        except BaseException:
            self.end("its start was given up")
            raise

    def end(self, reason: str) -> None:
        """Kills the shell and everything it started, at once; a cell under way fails with `reason`. Idempotent."""
        if self.ended is not None:
            return
        self.ended = reason
        if self.pid and not self._exited:
            tree.send_signal(self.pid, signal.SIGKILL)
        for fd in (*self._outputs, self._statuses):
            self._loop.remove_reader(fd)
        if self._cells >= 0:
            self._loop.remove_writer(self._cells)
        for fd in (*self._outputs, self._commands, self._cells, self._statuses):
            if fd >= 0:
                os.close(fd)
        self._outputs = {}
        self._commands = self._cells = self._statuses = -1
        if self._done is not None and not self._done.done():
            self._done.set_exception(KernelDied(reason))
        self.when_ended()

    async def interrupt(self) -> None:
        """What Ctrl-C does: the cell is given up, programs it started get SIGINT."""
        if self.ended is None and self.pid:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGINT)

    # -- cells ------------------------------------------------------------------------------------------------------

    async def run(self, code: str, sink: Sink) -> None:
        """Runs a cell to its end; its lines go to `sink`. Cancelling leaves the cell running. Raises KernelDied."""
        self._count += 1
        sink({"type": "number_of_executions", "execution_count": self._count})
        self._sink = sink
        try:
            status = await self._until_status(b"__atoll_cell\n", code)
        finally:
            self._sink = None
        if status == _INTERRUPTED:
            sink(jupyter.error_line("KeyboardInterrupt", "", "the cell was interrupted"))
        elif status:
            sink(jupyter.error_line("ExitCode", str(status), f"the cell ended with exit code {status}"))

    async def run_silently(self, code: str) -> None:
        """Runs code that nobody sees and that is not counted. Raises KernelDied."""
        await self._until_status(b"__atoll_cell\n", code)

    def pause_output(self) -> None:
        """The reader of the output is slow: take no more from the programs until `resume_output`."""
        if not self._paused:
            self._paused = True
            for fd in self._outputs:
                self._loop.remove_reader(fd)

    def resume_output(self) -> None:
        if self._paused:
            self._paused = False
            for fd in self._outputs:
                self._loop.add_reader(fd, self._read_output, fd)

    async def _until_status(self, command: bytes, code: str = "") -> int:
        """The shell reports which cell a status belongs to: an interrupt may come before it has begun with one."""
        if self.ended is not None:
            raise KernelDied(self.ended)
        self._done = self._loop.create_future()
        self._sent += 1
        if self._sent > 1:
            # A cell ends at a NUL, which Bash itself would drop.
            self._unsent += f"{self._sent}\n{code}".replace("\0", "").encode("utf-8", "replace") + b"\0"
        os.write(self._commands, command)
        self._send()
        return await self._done

    def _send(self) -> None:
        """A cell may be longer than a pipe: the rest follows as the shell reads."""
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._cells, self._unsent[:_READ_SIZE]) :]
        except BlockingIOError:
            self._loop.add_writer(self._cells, self._send)
            return
        except OSError:
            self._unsent = b""  # the shell has closed its end: its exit will be reported
        self._loop.remove_writer(self._cells)

    # -- what comes back --------------------------------------------------------------------------------------------

    def _read_status(self) -> None:
        try:
            data = os.read(self._statuses, _READ_SIZE)
        except BlockingIOError:
            return
        if not data:
            self._loop.remove_reader(self._statuses)
            return
        self._status = (self._status + data)[-_MOST_STATUS:]
        wanted = str(self._sent).encode() if self._sent > 1 else b""
        status = next((int(code) for code, cell in _STATUS.findall(self._status) if cell == wanted), None)
        if status is not None and self._done is not None and not self._done.done():
            self._status = b""
            self._drain()
            self._done.set_result(status)

    def _drain(self) -> None:
        """What the cell's own programs have written is in the pipes by now."""
        for fd in list(self._outputs):
            self._read_output(fd)

    def _read_output(self, fd: int) -> None:
        name, decoder = self._outputs[fd]
        for _ in range(_MOST_AT_ONCE):
            try:
                data = os.read(fd, _READ_SIZE)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._loop.remove_reader(fd)
                return
            text = decoder.decode(data)
            if name == "stderr":
                text = _without_terminal(text)
            if text and self._sink is not None:
                self._sink(jupyter.stream_line(name, text))
            if self._paused or len(data) < _READ_SIZE:
                return

    def _on_exit(self, how: Exit) -> None:
        self._exited = True
        if self.ended is None:
            self._drain()
        self.end(how_it_ended(how))

    # -- start ------------------------------------------------------------------------------------------------------

    def _launch(self) -> bytes:
        """Starts the shell; returns the first line that is sent to it."""
        with contextlib.ExitStack() as theirs:

            def pipe(ours: int) -> int:
                """A pipe whose end `ours` (0 reads, 1 writes) is ours and does not block; returns the shell's end."""
                ends = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(ends[ours], False)
                theirs.callback(os.close, ends[1 - ours])
                self._pipes.append(ends[ours])
                return ends[1 - ours]

            self._pipes: list[int] = []
            try:
                stdin, cells, statuses, stdout, stderr = pipe(1), pipe(1), pipe(0), pipe(0), pipe(0)
                self.pid = spawn(
                    BASH.argv,
                    user=self._place.user,
                    env=self._place.env,
                    cwd=self._place.cwd,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    pass_fds=(cells, statuses),
                    start_in=self._place.start_in,
                )
            except BaseException:
                for fd in self._pipes:
                    os.close(fd)
                raise
        self._commands, self._cells, self._statuses, out, err = self._pipes
        self._reaper.watch(self.pid, self._on_exit)
        decoder = codecs.getincrementaldecoder("utf-8")
        self._outputs = {out: ("stdout", decoder("replace")), err: ("stderr", decoder("replace"))}
        for fd in self._outputs:
            self._loop.add_reader(fd, self._read_output, fd)
        self._loop.add_reader(self._statuses, self._read_status)
        return _preparation(cells, statuses).encode()


def _without_terminal(text: str) -> str:
    """An interactive shell complains when a signal has ended a program and there is no terminal to put right."""
    if "] tcsetattr: " not in text:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not (line.startswith("bash: [") and "] tcsetattr: " in line))


def _preparation(cells: int, statuses: int) -> str:
    """One line, so that there is one status of it. Programs of a cell see neither pipe and an empty input."""
    return (
        f'PS1= PS2= PROMPT_COMMAND=\'printf "%s %s\\0" "$?" "$__atoll_n" >&{statuses}\'; '
        "unset HISTFILE; export PAGER=cat; "
        f"__atoll_cell() {{ local __atoll; trap '' INT; IFS= read -r -u {cells} __atoll_n; "
        f"IFS= read -r -d '' -u {cells} __atoll; trap - INT; "
        f'eval "$__atoll" </dev/null {cells}<&- {statuses}>&-; }}\n'
    )
