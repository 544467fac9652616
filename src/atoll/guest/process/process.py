"""One command of a user: its pipes or terminal, the clients that listen to it, its end.

    program ──pipe──► Process ──► Subscription (bounded) ──► client's stream
                         │  └───► Subscription …
                         └──────► backlog, while nobody listens

Rules (docs/decisions/0011-processes-in-the-guest.md gives the reasons):
- While a listener is behind by more than HIGH_WATER bytes the pipes are not read: the program waits, memory stays flat.
- While nobody listens the pipes are read and the newest BACKLOG bytes kept: no program waits for a client that left.
- The end is sent as soon as the program itself has ended and its pipes are empty and quiet for QUIET_S: a server left
  behind with `&` does not hold the command open. What it writes later is read and dropped, so that it does not die of
  SIGPIPE.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import os
import signal
import termios
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from atoll.guest.log import CommandLog
from atoll.guest.pid1.reaper import Exit
from atoll.guest.process import tree
from atoll.guest.process.pty import resize, type_in_gvisor
from atoll.wire.envd.connect import Code, ConnectError
from atoll.wire.envd.process import DataEvent, EndEvent, KeepAlive, ProcessConfig, ProcessEvent, ProcessInfo, StartEvent

HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
BACKLOG = 64 * 1024
READ_SIZE = 64 * 1024
QUIET_S = 0.05
QUIET_MAX_S = 1.0

_KEEPALIVE = ProcessEvent(keepalive=KeepAlive())


def end_event(how: Exit) -> EndEvent:
    """In the words of Go's `os.ProcessState`, which E2B's clients show to people."""
    if how.signal is not None:
        name = signal.strsignal(how.signal) or f"signal {how.signal}"
        status = f"signal: {name.lower()}"
        return EndEvent(exit_code=-1, exited=False, status=status, error=status)
    status = f"exit status {how.code}"
    return EndEvent(exit_code=how.code, exited=True, status=status, error=status if how.code else None)


class Subscription:
    """What one client has still to get. Iterate with `next`; always `close`."""

    __slots__ = ("_events", "_loop", "_process", "_waiter", "size")

    def __init__(self, process: Process, loop: asyncio.AbstractEventLoop) -> None:
        self._process = process
        self._loop = loop
        self._events: deque[ProcessEvent] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.size = 0

    def put(self, event: ProcessEvent, size: int) -> None:
        self._events.append(event)
        self.size += size
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, keepalive_s: float) -> ProcessEvent:
        """The next event; a keepalive when there was none for `keepalive_s`. The last one is the end event."""
        if not self._events:
            timer = self._loop.call_later(keepalive_s, self._wake)
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
            if not self._events:
                return _KEEPALIVE
        event = self._events.popleft()
        if event.data is not None:
            self.size -= _size(event.data)
            self._process.relieved()
        return event

    def untaken(self) -> list[DataEvent]:
        """Output that this client never got."""
        return [event.data for event in self._events if event.data is not None]

    def close(self) -> None:
        self._process.unsubscribe(self)


def _bytes_in(fd: int) -> int:
    """Bytes that wait in a pipe or terminal."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(fd, termios.FIONREAD, count)
    except OSError:
        return 0
    return count[0]


def _size(data: DataEvent) -> int:
    return len(data.stdout or data.stderr or data.pty or b"")


@dataclass(slots=True)
class _Output:
    """One pipe (or the terminal) from the program. `paused`: not watched at the moment.

    `owed` counts the bytes that were in it when the program ended: those are the program's and must be sent; what comes
    after them is a grandchild's.
    """

    fd: int
    wrap: Callable[[bytes], DataEvent]
    paused: bool = False
    owed: int = 0


@dataclass(frozen=True, slots=True)
class Channels:
    """The guest's ends, all non-blocking: either `terminal`, or both pipes and perhaps `stdin`."""

    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    terminal: int | None = None
    gvisor: bool = False
    """See TierParts.gvisor_terminals."""


class Process:
    """A running or lately ended command. `on_end` is called once, after the end event."""

    def __init__(
        self,
        pid: int,
        config: ProcessConfig,
        tag: str | None,
        channels: Channels,
        loop: asyncio.AbstractEventLoop,
        on_end: Callable[[Process], None],
        log: CommandLog | None = None,
    ) -> None:
        self.pid = pid
        self.config = config
        self.tag = tag
        self.end: EndEvent | None = None
        self._loop = loop
        self._on_end = on_end
        self._log = log
        self._stdin = channels.stdin
        self._terminal = channels.terminal
        self._gvisor = channels.gvisor
        self._input_lock = asyncio.Lock()
        self._outputs: list[_Output] = []
        self._subscriptions: list[Subscription] = []
        self._backlog: deque[ProcessEvent] = deque()
        self._backlog_size = 0
        self._exit: Exit | None = None
        self._exit_at = 0.0
        self._quiet: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        if channels.terminal is not None:
            self._watch(channels.terminal, lambda data: DataEvent(pty=data))
        if channels.stdout is not None:
            self._watch(channels.stdout, lambda data: DataEvent(stdout=data))
        if channels.stderr is not None:
            self._watch(channels.stderr, lambda data: DataEvent(stderr=data))

    @property
    def info(self) -> ProcessInfo:
        return ProcessInfo(config=self.config, pid=self.pid, tag=self.tag)

    @property
    def backlog_size(self) -> int:
        return self._backlog_size

    # -- listeners --------------------------------------------------------------------------------------------------

    def subscribe(self) -> Subscription:
        """A listener: gets the start event, what no listener has received yet, then everything as it comes."""
        subscription = Subscription(self, self._loop)
        subscription.put(ProcessEvent(start=StartEvent(pid=self.pid)), 0)
        while self._backlog:
            event = self._backlog.popleft()
            subscription.put(event, _size(event.data) if event.data else 0)
        self._backlog_size = 0
        if self.end is not None:
            subscription.put(ProcessEvent(end=self.end), 0)
        else:
            self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            if not self._subscriptions:
                for data in subscription.untaken():
                    self._keep(data)
            self.relieved()

    def relieved(self) -> None:
        """A listener has taken something or left: read on if none is behind any more."""
        if not any(output.paused for output in self._outputs):
            return
        if all(subscription.size <= LOW_WATER for subscription in self._subscriptions):
            for output in self._outputs:
                self._resume(output)
            if self._exit is not None:
                self._settle()

    def _publish(self, data: DataEvent) -> None:
        if self.end is not None:
            return
        if self._log is not None:
            self._log.output(data)
        if not self._subscriptions:
            self._keep(data)
            return
        event = ProcessEvent(data=data)
        size = _size(data)
        behind = False
        for subscription in self._subscriptions:
            subscription.put(event, size)
            behind = behind or subscription.size > HIGH_WATER
        if behind:
            for output in self._outputs:
                self._pause(output)

    def _keep(self, data: DataEvent) -> None:
        """For the next listener."""
        self._backlog.append(ProcessEvent(data=data))
        self._backlog_size += _size(data)
        while self._backlog_size > BACKLOG and len(self._backlog) > 1:
            dropped = self._backlog.popleft()
            self._backlog_size -= _size(dropped.data) if dropped.data else 0

    # -- output -----------------------------------------------------------------------------------------------------

    def _watch(self, fd: int, wrap: Callable[[bytes], DataEvent]) -> None:
        output = _Output(fd, wrap)
        self._outputs.append(output)
        self._loop.add_reader(fd, self._readable, output)

    def _pause(self, output: _Output) -> None:
        if not output.paused:
            output.paused = True
            self._loop.remove_reader(output.fd)

    def _resume(self, output: _Output) -> None:
        if output.paused:
            output.paused = False
            self._loop.add_reader(output.fd, self._readable, output)

    def _readable(self, output: _Output) -> None:
        self._read(output)
        if self._exit is not None and self.end is None:
            self._settle()

    def _read(self, output: _Output) -> bool:
        """Reads once. False when there is nothing (more) to read now."""
        try:
            data = os.read(output.fd, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:  # EIO: the last user of a terminal has gone
            data = b""
        if not data:
            self._loop.remove_reader(output.fd)
            self._outputs.remove(output)
            if output.fd != self._terminal:
                os.close(output.fd)
            elif self._exit is not None:
                self._close_terminal()
            return False
        output.owed -= len(data)
        self._publish(output.wrap(data))
        return True

    def _close_terminal(self) -> None:
        if self._terminal is not None and not any(output.fd == self._terminal for output in self._outputs):
            os.close(self._terminal)
            self._terminal = None

    # -- the end ----------------------------------------------------------------------------------------------------

    def exited(self, how: Exit) -> None:
        """The reaper's news."""
        self._exit = how
        self._exit_at = self._loop.time()
        if self._deadline is not None:
            self._deadline.cancel()
        self.close_stdin()
        for output in self._outputs:
            output.owed = _bytes_in(output.fd)
        self._settle()

    def _settle(self) -> None:
        """After the exit: take what the pipes hold; end at once when they are closed, else when they stay quiet."""
        for output in list(self._outputs):
            while not output.paused and self._read(output) and output.owed > 0:
                pass
        if not self._outputs:
            self._finish()
            return
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        if any(output.owed > 0 for output in self._outputs):
            return  # a listener is behind; `relieved` comes back here
        left = self._exit_at + QUIET_MAX_S - self._loop.time()
        if left <= 0:
            self._finish()
        else:
            self._quiet = self._loop.call_later(min(QUIET_S, left), self._finish)

    def _finish(self) -> None:
        if self.end is not None or self._exit is None:
            return
        if self._quiet is not None:
            self._quiet.cancel()
        self.end = end_event(self._exit)
        if self._log is not None:
            self._log.ended(self.end)
        event = ProcessEvent(end=self.end)
        for subscription in self._subscriptions:
            subscription.put(event, 0)
        self._subscriptions.clear()
        for output in self._outputs:
            self._resume(output)
        self._close_terminal()
        self._on_end(self)

    # -- input ------------------------------------------------------------------------------------------------------

    async def write_stdin(self, data: bytes) -> None:
        """Returns when the pipe has taken all of it. Raises ConnectError failed_precondition."""
        if self._stdin is None:
            raise ConnectError(Code.FAILED_PRECONDITION, "stdin not enabled or closed")
        await self._write(lambda: self._stdin, data, "stdin")

    async def write_terminal(self, data: bytes) -> None:
        """Like `write_stdin`, for the terminal."""
        if self._terminal is None or self.end is not None:
            raise ConnectError(Code.FAILED_PRECONDITION, "tty not assigned to process")
        await self._write(lambda: self._terminal, data, "tty", type_in_gvisor if self._gvisor else os.write)

    async def _write(
        self,
        current: Callable[[], int | None],
        data: bytes,
        name: str,
        put: Callable[[int, memoryview], int] = os.write,
    ) -> None:
        async with self._input_lock:
            view = memoryview(data)
            while view:
                fd = current()
                if fd is None:
                    raise ConnectError(Code.FAILED_PRECONDITION, f"{name} not enabled or closed")
                try:
                    view = view[put(fd, view) :]
                except (BlockingIOError, InterruptedError):
                    await self._writable(fd)
                except OSError as error:
                    raise ConnectError(
                        Code.FAILED_PRECONDITION, f"error writing to {name}: {error.strerror}"
                    ) from error

    async def _writable(self, fd: int) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        # A duplicate is watched: the descriptor itself may be closed (and its number reused) while we wait.
        watched = os.dup(fd)
        self._loop.add_writer(watched, lambda: None if ready.done() else ready.set_result(None))
        try:
            await ready
        finally:
            self._loop.remove_writer(watched)
            os.close(watched)

    def close_stdin(self) -> None:
        """End of file for the program. Idempotent."""
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None

    @property
    def has_terminal(self) -> bool:
        return self._terminal is not None

    def resize(self, cols: int, rows: int) -> None:
        """Raises ConnectError failed_precondition."""
        if self._terminal is None:
            raise ConnectError(Code.FAILED_PRECONDITION, "tty not assigned to process")
        try:
            resize(self._terminal, cols, rows)
        except OSError as error:
            raise ConnectError(Code.FAILED_PRECONDITION, f"error resizing tty: {error.strerror}") from error
        if self._gvisor:
            self.send_signal(signal.SIGWINCH)

    # -- signals ----------------------------------------------------------------------------------------------------

    def send_signal(self, number: int) -> bool:
        """To the whole tree. False when nothing of it runs."""
        return tree.send_signal(self.pid, number)

    def kill_after(self, seconds: float) -> None:
        """Kills the tree at the deadline of the call that started it, if it still runs then."""
        self._deadline = self._loop.call_later(seconds, self.send_signal, signal.SIGKILL)
