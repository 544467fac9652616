"""One Jupyter kernel: its process, its two sockets, the cells it runs. Owns nothing of contexts or HTTP.

    start ──► process ──► sockets bound ──► iopub received ──► start-up cell ──► ready
    run(code) ──► execute_request on `shell`;  `iopub` publishes output … status idle  ──► done

The guest speaks to kernels directly (`zmtp.py`): a bridge process with jupyter_client in every sandbox would cost 30
MB, a hop per message, and one more thing that can be killed.

A kernel may be anything that a user installed or broke: every wait has an end, every message may be garbage.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from atoll.guest.errors import GuestError
from atoll.guest.interpreter import jupyter, zmtp
from atoll.guest.interpreter.cell import Cell, Sink, nowhere
from atoll.guest.interpreter.forkserver import ForkServer, NotForked
from atoll.guest.interpreter.kernelspecs import KernelSpec
from atoll.guest.pid1.reaper import Exit, Reaper
from atoll.guest.process import tree
from atoll.guest.process.spawn import CwdMissing, StartIn, spawn
from atoll.guest.process.users import User

START_TIMEOUT_S = 120.0
"""A kernel on a machine with a hundred others may need long; one that says nothing for so long never will."""

_POLL_S = 0.01
_HELLO_S = 0.1
_IDLE_GRACE_S = 2.0
"""After the reply on `shell`, how long the last output on `iopub` is waited for if its end does not come: a publisher
drops messages when its reader is slow, and the end may be among them."""

_SHELL, _IOPUB, _STDIN, _CONTROL, _HEARTBEAT = 1, 2, 3, 4, 5
_STDERR_KEPT = 4096
_INTERRUPT_TIMEOUT_S = 5.0
_ENDS_WITHIN_S = 3.0
"""A process that closes its sockets in order ends a moment later, and then it is known how."""
_READ_AFTER_EXIT_S = 1.0
"""A process that it left behind may hold its sockets open: their end is not waited for longer."""

_LATE_S = 0.03
"""How long the value of a cell may come after its end: Deno publishes it beside, not before."""


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


_STARTUP_CELLS = {
    "python3": f"exec({_text('kernel_startup.py')!r}, {{'__name__': '_startup'}})",
    "javascript": _text("kernel_startup.js"),
    "java": _text("kernel_startup.java"),
}
"""Kernel → the cell that it runs before any other."""

_STARTUP_OF_A_FORK = "exec(__import__('sys').__dict__.pop('_atoll_startup'), {'__name__': '_startup'})"
"""The same as Python's, which the fork server has compiled already."""

LIBRARIES_CELL = f"exec({_text('kernel_libraries.py')!r}, {{'__name__': '_libraries'}})"
"""For a Python kernel that waits: takes half a second, and 53 MB for as long as it lives."""


class KernelDied(GuestError):
    """The process ended; the message says how."""


class KernelStartFailed(GuestError):
    """The kernel never became ready; the message says why, with the end of its output."""


@dataclass(frozen=True, slots=True)
class KernelPlace:
    """Where and as whom a kernel runs. `runtime_dir` belongs to the user and holds the sockets."""

    user: User
    cwd: str
    env: Mapping[str, str] = field(repr=False)
    runtime_dir: str = ""
    start_in: StartIn | None = None


class _Where(TypedDict):
    """What `spawn` and `ForkServer.fork` both need."""

    user: User
    env: Mapping[str, str]
    cwd: str
    start_in: StartIn | None


class Kernel:
    """A kernel, live from `start` until it ends by itself or by `end`; `ended` then says how. Never started twice."""

    def __init__(
        self, spec: KernelSpec, place: KernelPlace, reaper: Reaper, forkserver: ForkServer | None = None
    ) -> None:
        """`forkserver`: where it is forked, if that can be had; the `spec` is one that it takes."""
        self.spec = spec
        self.ended: str | None = None
        """How it ended, for people; None while it lives."""
        self.when_ended: Callable[[], None] = lambda: None
        """Called once, when it has ended by itself or by `end`."""
        self._place = place
        self._reaper = reaper
        self._forkserver = forkserver
        self._loop = asyncio.get_running_loop()
        self._key = secrets.token_hex(16)
        self._session = jupyter.Session(self._key.encode())
        self._stem = os.path.join(place.runtime_dir, f"kernel-{secrets.token_hex(4)}")
        self._uses_tcp = False
        self._ports: dict[int, int] = {}
        self._cells: dict[str, Cell] = {}
        self._shell: zmtp.ZmtpConnection | None = None
        self._iopub: zmtp.ZmtpConnection | None = None
        self._control: zmtp.ZmtpConnection | None = None
        self._received = asyncio.Event()
        self._stderr = bytearray()
        self._stderr_fd: int | None = None
        self._exited = False
        self.pid = 0

    # -- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when it takes cells. Raises KernelStartFailed, CwdMissing; then nothing of it is left."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._launch()
                self._shell = await self._connect(_SHELL, zmtp.SocketType.DEALER, self._on_shell)
                self._iopub = await self._connect(_IOPUB, zmtp.SocketType.SUB, self._on_iopub)
                await self._listen_until_received()
                cell = _STARTUP_OF_A_FORK if self._forkserver else _STARTUP_CELLS.get(self.spec.name)
                if cell:
                    await self.run_silently(cell)
        except (OSError, TimeoutError, KernelDied, ValueError) as error:
            reason = self._why_not_started(error)
            self.end(reason)
            raise KernelStartFailed(reason) from error
        except BaseException:
            self.end("its start was given up")
            raise

    def end(self, reason: str) -> None:
        """Kills the process and everything it started, at once; cells under way fail with `reason`. Idempotent."""
        if self.ended is not None:
            return
        self.ended = reason
        if self.pid and not self._exited:
            tree.send_signal(self.pid, signal.SIGKILL)
        self._close()
        for cell in list(self._cells.values()):
            cell.failed = True
            cell.finish()
        self.when_ended()

    async def interrupt(self) -> None:
        """What Ctrl-C does: the running cell gets KeyboardInterrupt, programs it started get SIGINT.

        A kernel that asks for a message instead gets one.
        """
        if self.ended is not None or not self.pid or self._exited:
            return
        if not self.spec.interrupted_by_message:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGINT)
            return
        try:
            async with asyncio.timeout(_INTERRUPT_TIMEOUT_S):
                if self._control is None:
                    self._control = await self._connect(_CONTROL, zmtp.SocketType.DEALER, _unheard)
                self._control.send(self._session.request("interrupt_request", {})[1])
        except (OSError, TimeoutError, KernelDied):
            return

    # -- cells ------------------------------------------------------------------------------------------------------

    async def run(self, code: str, sink: Sink) -> None:
        """Runs a cell to its end; its lines go to `sink`. Cancelling leaves the cell running. Raises KernelDied."""
        await self._run(code, sink, silent=False)

    async def run_silently(self, code: str) -> None:
        """Runs code that nobody sees and that is not counted. Raises KernelDied."""
        await self._run(code, nowhere, silent=True)

    async def _run(self, code: str, sink: Sink, *, silent: bool) -> None:
        if self.ended is not None or self._shell is None:
            raise KernelDied(self.ended or "the kernel is not running")
        message_id, frames = self._session.request("execute_request", jupyter.execute_request(code, silent=silent))
        cell = Cell(sink, self._loop.create_future(), displays_its_value=self.spec.name == "ir")
        self._cells[message_id] = cell
        try:
            self._shell.send(frames)
            await cell.done
        finally:
            self._cells.pop(message_id, None)
            if cell.timer is not None:
                cell.timer.cancel()
        if cell.failed:
            raise KernelDied(self.ended or "the kernel ended")
        cell.put_unpublished_error()

    def pause_output(self) -> None:
        """The reader of the output is slow: take no more from the kernel until `resume_output`."""
        if self._iopub is not None:
            self._iopub.pause()

    def resume_output(self) -> None:
        if self._iopub is not None:
            self._iopub.resume()

    def _on_iopub(self, frames: zmtp.Message) -> None:
        message = jupyter.parse(frames)
        if message is None:
            return
        self._received.set()
        cell = self._cells.get(message.parent_id)
        if cell is None:
            return
        if message.kind == "status":
            if message.content.get("execution_state") == "idle":
                cell.idle = True
                self._settle(cell)
            return
        cell.put(message)
        if cell.idle or cell.reply is not None:
            self._settle(cell)

    def _on_shell(self, frames: zmtp.Message) -> None:
        # A DEALER's message has no topic; `parse` finds the delimiter wherever it is.
        message = jupyter.parse(frames)
        if message is None or message.kind != "execute_reply":
            return
        cell = self._cells.get(message.parent_id)
        if cell is not None:
            cell.reply = message
            self._settle(cell)

    def _settle(self, cell: Cell) -> None:
        """Ends the cell when nothing more is to come of it; else says how long what is missing is waited for."""
        ordered = not self._uses_tcp
        complete = cell.idle and (ordered or cell.reply is not None)
        if complete and (ordered or cell.sink is nowhere or cell.published & {"execute_result", "error"}):
            cell.finish()
            return
        if cell.timer is not None:
            cell.timer.cancel()
        cell.timer = self._loop.call_later(_LATE_S if complete else _IDLE_GRACE_S, cell.finish)

    # -- start, step by step ----------------------------------------------------------------------------------------

    async def _launch(self) -> None:
        self._make_runtime_dir()
        argv = [word.replace("{connection_file}", f"{self._stem}.json") for word in self.spec.argv]
        # Only kernels on libzmq are known to take Unix sockets; others get TCP on the sandbox's own loopback.
        self._uses_tcp = "ipykernel_launcher" not in argv
        self._ports = _free_ports() if self._uses_tcp else {n: n for n in range(_SHELL, _HEARTBEAT + 1)}
        self._write_connection_file()
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # The kernel's end must block: a program that it starts may not know how to wait.
        fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        try:
            await self._begin(argv, writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._stderr_fd = reading
        self._loop.add_reader(reading, self._read_stderr, reading)

    async def _begin(self, argv: list[str], stderr: int) -> None:
        place, env = self._place, {**self._place.env, **self.spec.env}
        where: _Where = {"user": place.user, "env": env, "cwd": place.cwd, "start_in": place.start_in}
        if self._forkserver is not None:
            try:
                await self._forkserver.fork(self.spec, f"{self._stem}.json", stderr, self._begun, **where)
                return
            except NotForked as error:
                if self.ended is not None:
                    raise KernelDied(self.ended) from error
                self._forkserver = None
        self._begun(spawn(argv, stderr=stderr, **where))

    def _begun(self, pid: int) -> bool:
        if self.ended is not None:
            return False
        self.pid = pid
        self._reaper.watch(pid, self._on_exit)
        return True

    def _make_runtime_dir(self) -> None:
        folder, user = self._place.runtime_dir, self._place.user
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(folder, user.uid, user.gid)

    def _write_connection_file(self) -> None:
        content = {
            "transport": "tcp" if self._uses_tcp else "ipc",
            "ip": "127.0.0.1" if self._uses_tcp else self._stem,
            "shell_port": self._ports[_SHELL],
            "iopub_port": self._ports[_IOPUB],
            "stdin_port": self._ports[_STDIN],
            "control_port": self._ports[_CONTROL],
            "hb_port": self._ports[_HEARTBEAT],
            "key": self._key,
            "signature_scheme": "hmac-sha256",
            "kernel_name": self.spec.name,
        }
        user = self._place.user
        fd = os.open(f"{self._stem}.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            if os.geteuid() == 0:
                os.fchown(file.fileno(), user.uid, user.gid)
            json.dump(content, file)

    async def _connect(
        self, channel: int, kind: zmtp.SocketType, received: Callable[[zmtp.Message], None]
    ) -> zmtp.ZmtpConnection:
        lost = self._on_lost if channel != _CONTROL else self._on_control_lost
        connection = zmtp.ZmtpConnection(kind, received, lost, self._session_identity(channel))
        while True:
            if self.ended is not None:
                raise KernelDied(self.ended)
            try:
                if self._uses_tcp:
                    await self._loop.create_connection(lambda: connection, "127.0.0.1", self._ports[channel])
                else:
                    path = f"{self._stem}-{channel}"
                    await self._loop.create_unix_connection(lambda: connection, path)
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(_POLL_S)
            else:
                return connection

    def _session_identity(self, channel: int) -> bytes:
        return f"{channel}-{self._key[:8]}".encode() if channel == _SHELL else b""

    async def _listen_until_received(self) -> None:
        """A subscription takes hold some time after it was sent, output is lost till then: ask until one arrives."""
        assert self._shell is not None
        while not self._received.is_set():
            if self.ended is not None:
                raise KernelDied(self.ended)
            _, frames = self._session.request("kernel_info_request", {})
            self._shell.send(frames)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HELLO_S):
                    await self._received.wait()

    # -- end --------------------------------------------------------------------------------------------------------

    def _on_exit(self, how: Exit) -> None:
        self._exited = True
        self._end_when_read(how_it_ended(how), self._loop.time() + _READ_AFTER_EXIT_S)

    def _end_when_read(self, reason: str, deadline: float) -> None:
        """What it had published before it died is read first, at the pace of the reader: it is the cell's output."""
        now = self._loop.time()
        if not self._cells or self._iopub is None or self._iopub.is_lost or now > deadline:
            self.end(reason)
        elif self.ended is None:
            deadline = now + _READ_AFTER_EXIT_S if self._iopub.is_paused else deadline
            self._loop.call_later(_POLL_S, self._end_when_read, reason, deadline)

    def _on_lost(self) -> None:
        """A socket closed under a living process: it cannot be used any more, so it is as good as dead."""
        if self.ended is None and self._iopub is not None:
            self._loop.call_later(_ENDS_WITHIN_S, self._give_up)

    def _on_control_lost(self) -> None:
        self._control = None

    def _give_up(self) -> None:
        if not self._exited:
            self.end("the kernel closed its connection")

    def _close(self) -> None:
        for connection in (self._shell, self._iopub, self._control):
            if connection is not None:
                connection.close()
        if self._stderr_fd is not None:
            self._read_stderr(self._stderr_fd)
        if self._stderr_fd is not None:
            self._loop.remove_reader(self._stderr_fd)
            os.close(self._stderr_fd)
            self._stderr_fd = None
        for name in (".json", *(f"-{n}" for n in range(_SHELL, _HEARTBEAT + 1))):
            with contextlib.suppress(OSError):
                os.unlink(self._stem + name)

    def _read_stderr(self, fd: int) -> None:
        """What a kernel says before it can publish, and what escapes its capture: only the end is kept."""
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._stderr += data
            del self._stderr[:-_STDERR_KEPT]
        elif self._stderr_fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)
            self._stderr_fd = None

    def _why_not_started(self, error: BaseException) -> str:
        output = self._stderr.decode("utf-8", "replace").strip()
        if isinstance(error, TimeoutError):
            reason = f"it was not ready after {START_TIMEOUT_S:.0f} s"
        else:
            reason = str(error) or type(error).__name__
        return f"kernel {self.spec.name!r} did not start: {reason}" + (f"\n{output}" if output else "")


def _unheard(_: zmtp.Message) -> None:
    """An answer that nobody waits for."""


def how_it_ended(how: Exit) -> str:
    """For people."""
    if how.signal is None:
        return f"the kernel exited with code {how.code}"
    name = signal.Signals(how.signal).name if how.signal in set(signal.Signals) else str(how.signal)
    hint = " (out of memory?)" if how.signal == signal.SIGKILL else ""
    return f"the kernel was ended by signal {name}{hint}"


def _free_ports() -> dict[int, int]:
    """Five ports that were free a moment ago, one per channel. A clash makes the start fail; the next one succeeds."""
    with contextlib.ExitStack() as held:
        ports = {}
        for channel in range(_SHELL, _HEARTBEAT + 1):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports[channel] = probe.getsockname()[1]
    return ports


__all__ = ["CwdMissing", "Kernel", "KernelDied", "KernelPlace", "KernelStartFailed", "Sink", "how_it_ended"]
