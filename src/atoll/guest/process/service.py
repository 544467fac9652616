"""`process.Process` over Connect: starts commands, finds them again, passes input, output and signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator

from atoll.guest.log import CommandLog
from atoll.guest.pid1.reaper import Reaper
from atoll.guest.process.process import Channels, Process
from atoll.guest.process.pty import open_terminal
from atoll.guest.process.spawn import CwdMissing, StartIn, spawn
from atoll.guest.process.users import User
from atoll.guest.state import GuestState
from atoll.guest.tier_parts import TierParts
from atoll.http1.server import Headers
from atoll.wire.envd.connect import Call, Code, ConnectError, Service
from atoll.wire.envd.process import (
    PTY,
    SERVICE,
    CloseStdinRequest,
    CloseStdinResponse,
    ConnectRequest,
    ConnectResponse,
    ListRequest,
    ListResponse,
    ProcessEvent,
    ProcessInput,
    ProcessSelector,
    SendInputRequest,
    SendInputResponse,
    SendSignalRequest,
    SendSignalResponse,
    Signal,
    StartRequest,
    StartResponse,
    StreamInputRequest,
    StreamInputResponse,
    UpdateRequest,
    UpdateResponse,
)

KEEPALIVE_S = 90.0
ENDED_KEPT_S = 30.0
"""How long the end of a command can still be asked for with Connect."""
ENDED_KEPT = 512
ENDED_BACKLOG = 8 * 1024 * 1024
"""Output of ended commands that no listener has received, kept for those 30 s: bytes in all."""
_DEFAULT_SIZE = (80, 24)


class ProcessTable:
    """The commands that run, and the ends of the last ones."""

    def __init__(self, state: GuestState, reaper: Reaper, loop: asyncio.AbstractEventLoop) -> None:
        self._state = state
        self._reaper = reaper
        self._loop = loop
        self._running: dict[int, Process] = {}
        self._ended: OrderedDict[int, Process] = OrderedDict()

    def running(self) -> list[Process]:
        return list(self._running.values())

    def start(self, request: StartRequest, user: User) -> Process:
        """Raises ConnectError (unknown program or cwd, no more processes)."""
        config = request.process
        if config is None or not config.cmd:
            raise ConnectError(Code.INVALID_ARGUMENT, "process.cmd is empty")
        cwd = self._state.resolve(config.cwd or "", user)
        if not os.path.isdir(cwd):
            raise ConnectError(Code.INVALID_ARGUMENT, f"cwd '{cwd}' does not exist")
        env = self._state.environment_of(user, config.envs)
        argv = [config.cmd, *config.args]
        try:
            if request.pty is not None:
                env.setdefault("TERM", "xterm-256color")
                pid, channels = _spawn_in_terminal(argv, user, env, cwd, request.pty, self._state.tier)
            else:
                pid, channels = _spawn_with_pipes(
                    argv, user, env, cwd, request.stdin is not False, self._state.tier.start_in
                )
        except CwdMissing as error:
            raise ConnectError(Code.INVALID_ARGUMENT, f"cwd '{cwd}' cannot be entered: {error}") from error
        except (OSError, ValueError) as error:
            raise ConnectError(Code.INVALID_ARGUMENT, f"error starting process '{config.cmd}': {error}") from error
        log = CommandLog(self._state.log, pid, config, request.tag)
        process = Process(pid, config, request.tag, channels, self._loop, self._on_end, log)
        self._ended.pop(pid, None)
        self._running[pid] = process
        self._reaper.watch(pid, process.exited)
        return process

    def find(self, selector: ProcessSelector | None, *, ended_too: bool = False) -> Process:
        """Raises ConnectError not_found; invalid_argument for an empty selector."""
        if selector is not None and selector.pid is not None:
            found = self._running.get(selector.pid) or (self._ended.get(selector.pid) if ended_too else None)
            name = f"pid {selector.pid}"
        elif selector is not None and selector.tag is not None:
            pools = (self._running, self._ended) if ended_too else (self._running,)
            # Newest first: a tag may be used again.
            matches = (each for pool in pools for each in reversed(pool.values()) if each.tag == selector.tag)
            found = next(matches, None)
            name = f"tag {selector.tag[:256]!r}"
        else:
            raise ConnectError(Code.INVALID_ARGUMENT, "process selector is empty: give a pid or a tag")
        if found is None:
            raise ConnectError(Code.NOT_FOUND, f"process with {name} not found")
        return found

    def _on_end(self, process: Process) -> None:
        if self._running.get(process.pid) is process:
            del self._running[process.pid]
        self._ended[process.pid] = process
        self._loop.call_later(ENDED_KEPT_S, self._forget, process)
        kept = sum(each.backlog_size for each in self._ended.values())
        while len(self._ended) > ENDED_KEPT or kept > ENDED_BACKLOG:
            _, oldest = self._ended.popitem(last=False)
            kept -= oldest.backlog_size

    def _forget(self, process: Process) -> None:
        if self._ended.get(process.pid) is process:
            del self._ended[process.pid]


def _spawn_with_pipes(
    argv: list[str], user: User, env: dict[str, str], cwd: str, with_stdin: bool, start_in: StartIn | None
) -> tuple[int, Channels]:
    with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as always:
        ours: list[int] = []
        theirs: list[int] = []
        for name in ("stdin", "stdout", "stderr"):
            if name == "stdin" and not with_stdin:
                continue
            read, write = os.pipe()
            mine, child = (write, read) if name == "stdin" else (read, write)
            on_failure.callback(os.close, mine)
            always.callback(os.close, child)
            os.set_blocking(mine, False)
            ours.append(mine)
            theirs.append(child)
        stdin = theirs[0] if with_stdin else None
        pid = spawn(
            argv, user=user, env=env, cwd=cwd, stdin=stdin, stdout=theirs[-2], stderr=theirs[-1], start_in=start_in
        )
        on_failure.pop_all()
        return pid, Channels(stdin=ours[0] if with_stdin else None, stdout=ours[-2], stderr=ours[-1])


def _spawn_in_terminal(
    argv: list[str], user: User, env: dict[str, str], cwd: str, pty: PTY, tier: TierParts
) -> tuple[int, Channels]:
    size = pty.size
    cols, rows = (size.cols or _DEFAULT_SIZE[0], size.rows or _DEFAULT_SIZE[1]) if size else _DEFAULT_SIZE
    terminal = open_terminal(user, cols, rows)
    try:
        pid = spawn(argv, user=user, env=env, cwd=cwd, tty=terminal.path, start_in=tier.start_in)
    except BaseException:
        os.close(terminal.master)
        raise
    return pid, Channels(terminal=terminal.master, gvisor=tier.gvisor_terminals)


def keepalive_interval(headers: Headers) -> float:
    """Seconds from `Keepalive-Ping-Interval`; the default for none, or for what is no positive number."""
    text = headers.get("keepalive-ping-interval") or ""
    if text.isascii() and text.isdigit() and 0 < len(text) <= 6 and int(text) > 0:
        return float(text)
    return KEEPALIVE_S


class ProcessService:
    """The RPC methods; `service` is what a router mounts."""

    def __init__(self, state: GuestState, table: ProcessTable) -> None:
        self._state = state
        self._table = table
        self.service = Service(SERVICE)
        self.service.unary("List", ListRequest, self._list)
        self.service.server_stream("Start", StartRequest, self._start)
        self.service.server_stream("Connect", ConnectRequest, self._connect)
        self.service.unary("Update", UpdateRequest, self._update)
        self.service.client_stream("StreamInput", StreamInputRequest, self._stream_input)
        self.service.unary("SendInput", SendInputRequest, self._send_input)
        self.service.unary("SendSignal", SendSignalRequest, self._send_signal)
        self.service.unary("CloseStdin", CloseStdinRequest, self._close_stdin)

    async def _list(self, request: ListRequest, call: Call) -> ListResponse:
        return ListResponse(processes=[process.info for process in self._table.running()])

    async def _start(self, request: StartRequest, call: Call) -> AsyncIterator[StartResponse]:
        process = self._table.start(request, self._state.user_of(call.headers))
        if call.timeout_s is not None:
            process.kill_after(call.timeout_s)
        async with contextlib.aclosing(_events(process, call)) as events:
            async for event in events:
                yield StartResponse(event=event)

    async def _connect(self, request: ConnectRequest, call: Call) -> AsyncIterator[ConnectResponse]:
        process = self._table.find(request.process, ended_too=True)
        async with contextlib.aclosing(_events(process, call)) as events:
            async for event in events:
                yield ConnectResponse(event=event)

    async def _update(self, request: UpdateRequest, call: Call) -> UpdateResponse:
        process = self._table.find(request.process)
        if request.pty is not None and request.pty.size is not None:
            process.resize(request.pty.size.cols, request.pty.size.rows)
        return UpdateResponse()

    async def _send_input(self, request: SendInputRequest, call: Call) -> SendInputResponse:
        await _write(self._table.find(request.process), request.input)
        return SendInputResponse()

    async def _stream_input(self, requests: AsyncIterator[StreamInputRequest], call: Call) -> StreamInputResponse:
        process: Process | None = None
        async for request in requests:
            if request.start is not None:
                process = self._table.find(request.start.process)
            elif request.data is not None:
                if process is None:
                    raise ConnectError(Code.INVALID_ARGUMENT, "the stream must begin with a start event")
                await _write(process, request.data.input)
        if process is None:
            raise ConnectError(Code.INVALID_ARGUMENT, "the stream must begin with a start event")
        return StreamInputResponse()

    async def _send_signal(self, request: SendSignalRequest, call: Call) -> SendSignalResponse:
        process = self._table.find(request.process)
        if request.signal not in (Signal.SIGNAL_SIGTERM, Signal.SIGNAL_SIGKILL):
            raise ConnectError(Code.UNIMPLEMENTED, f"invalid signal: {int(request.signal)}")
        process.send_signal(int(request.signal))
        return SendSignalResponse()

    async def _close_stdin(self, request: CloseStdinRequest, call: Call) -> CloseStdinResponse:
        process = self._table.find(request.process)
        if process.has_terminal:
            raise ConnectError(Code.FAILED_PRECONDITION, "cannot close stdin of a PTY: send Ctrl+D (0x04) instead")
        process.close_stdin()
        return CloseStdinResponse()


async def _events(process: Process, call: Call) -> AsyncGenerator[ProcessEvent, None]:
    """Everything from the start event to the end event. Leaving early does not touch the process."""
    interval = keepalive_interval(call.headers)
    subscription = process.subscribe()
    try:
        while True:
            event = await subscription.next(interval)
            yield event
            if event.end is not None:
                return
    finally:
        subscription.close()


async def _write(process: Process, given: ProcessInput | None) -> None:
    if given is not None and given.stdin is not None:
        await process.write_stdin(given.stdin)
    elif given is not None and given.pty is not None:
        await process.write_terminal(given.pty)
    else:
        raise ConnectError(Code.INVALID_ARGUMENT, "input is empty: give stdin or pty")
