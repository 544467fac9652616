"""One task owns one sandbox on this node, from before it exists until nothing of it is left.

    create, adopted ──► running ◄──resume── paused ──► the states of model/lifecycle.py, each written down in its
       │                   └──────pause──────►│          directory before it is begun and after it is done
       └── failed: what was made is undone    └──kill──► finished

The directory is the sandbox; a process is only its running form. Everybody else sends the driver commands; only `stats`
and `dial` go straight to the handle, because they change nothing.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from atoll.isolation import directory
from atoll.isolation.base import ExitReport, IsolationBackend, SandboxHandle
from atoll.isolation.directory import Paused
from atoll.model.errors import (
    AtollError,
    Conflict,
    CreateFailed,
    MemoryLost,
    NotFound,
    NotOffered,
    PlatformError,
    SandboxGone,
    StorageFull,
)
from atoll.model.lifecycle import check_transition
from atoll.model.sandbox import PauseMode, SandboxPaths, SandboxSpec, SandboxState
from atoll.model.volume import DeviceMount
from atoll.node.directories import SandboxDirectories
from atoll.node.gpus import NodeGpus
from atoll.node.volumes import NodeVolumes, NoVolumes

CREATE_TIMEOUT_S = 30.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_MAKE_ROOM = "make room on the disk of its data directory and try again"
KILL_TIMEOUT_S = 15.0
"""Longer than the ten seconds that the contract gives a backend: past it the backend is broken, not slow."""

_log = structlog.get_logger("atoll.node")


@dataclass(frozen=True, slots=True)
class _Kill:
    pass


@dataclass(frozen=True, slots=True)
class _Keep:
    """A kill that first saves what the sandbox has written."""

    save: Callable[[Path], Awaitable[None]]
    saved: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class _Detach:
    pass


@dataclass(frozen=True, slots=True)
class _Died:
    report: ExitReport
    handle: SandboxHandle


@dataclass(frozen=True, slots=True)
class _Pause:
    mode: PauseMode
    answer: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Resume:
    mode: PauseMode
    answer: asyncio.Future[SandboxHandle]


@dataclass(frozen=True, slots=True)
class _Become:
    spec: SandboxSpec
    answer: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a sandbox's driver came to its end. `asked` is True for a kill, False when the guest died by itself."""

    sandbox_id: str
    asked: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Making:
    """What a sandbox is made with, and made again after a pause."""

    backend: IsolationBackend
    spec: SandboxSpec
    paths: SandboxPaths
    volumes: NodeVolumes = field(default_factory=NoVolumes)
    gpus: NodeGpus = field(default_factory=NodeGpus)

    @asynccontextmanager
    async def with_devices(self) -> AsyncIterator[SandboxPaths]:
        """The paths, with its GPUs, and with the devices of its volumes while they are needed. Raises CreateFailed."""
        mounts, added = self.spec.volumes, await self.gpus.edits(self.spec)
        try:
            async with self.volumes.attached([mount.volume_id for mount in mounts]) as devices:
                pairs = zip(devices, mounts, strict=True)
                attached = tuple(DeviceMount(device, one.path) for device, one in pairs)
                yield replace(self.paths, volumes=attached, devices=added)
        except NotFound as error:
            raise CreateFailed(f"sandbox {self.spec.sandbox_id!r}: {error.message}") from error


class SandboxDriver:
    """`run` is the task; every other method may be called from any other task at any time."""

    def __init__(self, sandbox_id: str, directories: SandboxDirectories) -> None:
        self.sandbox_id = sandbox_id
        self.started: asyncio.Future[SandboxHandle] = asyncio.get_running_loop().create_future()
        self.finished = asyncio.Event()
        self._stopped = asyncio.Event()
        """Nothing of it runs any more and its directory is gone; the rest is being freed."""
        self.paused: Paused | None = None
        """What is kept of it while it is paused."""
        self.log_base = 0
        """See StateRecord."""
        self._directories = directories
        self._state_dir = directories.of(sandbox_id)
        self._commands: asyncio.Queue[_Kill | _Keep | _Detach | _Died | _Pause | _Resume | _Become] = asyncio.Queue()
        self._closed = False
        self._state = SandboxState.CREATING
        self._watcher: asyncio.Task[None] | None = None

    async def create(self, making: Making) -> Ended | None:
        """The task of a new sandbox. Reports the outcome through `started`; None: it never lived, or was detached.

        A failure is kept in `started` as CreateFailed (or what the backend raised).
        """
        try:
            handle = await self._create(making)
        except asyncio.CancelledError:
            self._fail(CreateFailed(f"sandbox {self.sandbox_id!r} was not made: the server is stopping"))
            raise
        except AtollError as error:
            self._fail(error)
            return None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                _log.error("sandbox.create_failed", sandbox_id=self.sandbox_id, error=str(error))
                self._fail(StorageFull(f"the node's disk has no room for a sandbox: {error}", hint=_MAKE_ROOM))
                return None
            _log.exception("sandbox.create_failed", sandbox_id=self.sandbox_id)
            self._fail(CreateFailed(f"sandbox {self.sandbox_id!r} was not made: {error}"))
            return None
        self.started.set_result(handle)
        return await self._live(making, handle)

    async def adopted(self, making: Making, handle: SandboxHandle) -> Ended | None:
        """The task of a sandbox that an earlier server made and that runs."""
        self._state = SandboxState.RUNNING
        self.started.set_result(handle)
        await self._limit_disk(making.spec, handle, making.spec.disk_mib_s)
        return await self._live(making, handle)

    async def adopted_paused(self, making: Making, paused: Paused) -> Ended | None:
        """The task of a sandbox that an earlier server paused."""
        self._state, self.paused = SandboxState.PAUSED, paused
        return await self._live(making, None)

    async def kill(self) -> bool:
        """Ends it; returns once nothing of it runs. True if this found it alive. Bounded by KILL_TIMEOUT_S.

        What the kernel does not free by itself (cgroups) is freed next; `finished` says when.
        """
        alive = not self._closed
        if alive:
            self._commands.put_nowait(_Kill())
        await self._stopped.wait()
        return alive

    @property
    def has_stopped(self) -> bool:
        """Nothing of it runs any more."""
        return self._stopped.is_set()

    async def end_saving(self, save: Callable[[Path], Awaitable[None]]) -> None:
        """Ends it, and has `save` keep what it needs of its directory before that goes.

        Raises SandboxGone (it had ended before) and what `save` raises; the sandbox is gone in any case.
        """
        if self._closed:
            raise SandboxGone(self.sandbox_id)
        keep = _Keep(save)
        self._commands.put_nowait(keep)
        await self.finished.wait()
        if not keep.saved.done():
            raise SandboxGone(self.sandbox_id, "it ended before its files could be kept")
        keep.saved.result()

    def detach(self) -> None:
        """Ends the task and leaves the sandbox as it is, for the next server."""
        self._commands.put_nowait(_Detach())

    async def pause(self, mode: PauseMode) -> None:
        """Raises as SandboxHandle.pause (it runs on), Conflict (it does not run)."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ask(_Pause(mode, answer))
        await asyncio.shield(answer)

    async def resume(self, mode: PauseMode) -> SandboxHandle:
        """Raises as IsolationBackend.resume (it stays paused), Conflict (it is not paused)."""
        answer: asyncio.Future[SandboxHandle] = asyncio.get_running_loop().create_future()
        self._ask(_Resume(mode, answer))
        return await asyncio.shield(answer)

    async def become(self, spec: SandboxSpec) -> None:
        """What it was asked to be is `spec` from now on. Raises SandboxGone, PlatformError (it cannot be kept)."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ask(_Become(spec, answer))
        await asyncio.shield(answer)

    def _ask(self, command: _Pause | _Resume | _Become) -> None:
        if self._closed:
            raise SandboxGone(self.sandbox_id)
        self._commands.put_nowait(command)

    async def _create(self, making: Making) -> SandboxHandle:
        spec, paths = making.spec, making.paths
        async with AsyncExitStack() as undo:
            self._directories.make(self._state_dir)
            undo.callback(self._directories.discard, self._state_dir)
            self._directories.write_spec(spec, paths.lower_dirs)
            try:
                async with asyncio.timeout(CREATE_TIMEOUT_S):
                    async with making.with_devices() as paths:
                        handle = await making.backend.create(spec, paths)
            except TimeoutError as error:
                raise CreateFailed(
                    f"sandbox {self.sandbox_id!r} did not start within {CREATE_TIMEOUT_S:.0f} s"
                ) from error
            undo.push_async_callback(self._free, handle)
            if spec.disk_mib_s is not None:
                await handle.limit_disk(spec.disk_mib_s)
            self._move(SandboxState.RUNNING)
            undo.pop_all()
            return handle

    async def _live(self, making: Making, handle: SandboxHandle | None) -> Ended | None:
        if handle is not None:
            self._watch(handle)
        try:
            while True:
                match await self._commands.get():
                    case _Detach():
                        return None
                    case _Kill():
                        return await self._end(making, handle, Ended(self.sandbox_id, asked=True, detail="killed"))
                    case _Keep() as keep:
                        ended = Ended(self.sandbox_id, asked=True, detail="kept")
                        return await self._end(making, handle, ended, keep)
                    case _Died(report, which) if which is handle:
                        return await self._end(
                            making, handle, Ended(self.sandbox_id, asked=False, detail=report.detail)
                        )
                    case _Died():
                        pass  # of a handle that a pause has used up
                    case _Pause(mode, answer):
                        handle = await self._pause(making, handle, mode, answer)
                    case _Resume() as command:
                        handle = await self._resume(making, handle, command)
                    case _Become(spec, answer):
                        making = self._become(making, spec, answer)
        finally:
            await self._watch_no_more()
            self._close()

    def _become(self, making: Making, spec: SandboxSpec, answer: asyncio.Future[None]) -> Making:
        try:
            self._directories.rewrite_spec(spec, making.paths.lower_dirs)
        except OSError as error:
            answer.set_exception(PlatformError(f"sandbox {self.sandbox_id!r} stays what it is: {error}"))
            answer.exception()  # the caller may be gone
            return making
        answer.set_result(None)
        return replace(making, spec=spec)

    # Pause and resume

    async def _pause(
        self, making: Making, handle: SandboxHandle | None, mode: PauseMode, answer: asyncio.Future[None]
    ) -> SandboxHandle | None:
        if handle is None:
            answer.set_exception(Conflict(f"sandbox {self.sandbox_id!r} is paused already"))
            return None
        await self._watch_no_more()
        try:
            if not making.paths.lower_dirs:
                raise NotOffered("a sandbox that an earlier Atoll made cannot be paused: its layers were not recorded")
            try:
                directory.begin_pause(self._state_dir, mode)
            except OSError as error:
                raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be paused: {error}") from error
            self._state = SandboxState.PAUSING
            await self._limit_disk(making.spec, handle, None)  # what is pending is written out now
            record = await handle.pause(mode)
        except AtollError as error:
            if self._state is SandboxState.PAUSING:
                self._move_if_possible(SandboxState.RUNNING)
            await self._limit_disk(making.spec, handle, making.spec.disk_mib_s)
            self._watch(handle)
            answer.set_exception(error)
            answer.exception()  # the caller may be gone
            return handle
        self.paused = Paused(mode, record)
        self._state = SandboxState.PAUSED
        try:
            await asyncio.to_thread(directory.end_pause, self._state_dir, mode, record)
        except OSError as error:  # it is paused all the same; only a crash of the machine could take it back
            _log.error("sandbox.pause_not_settled", sandbox_id=self.sandbox_id, error=str(error))
        answer.set_result(None)
        return None

    async def _resume(self, making: Making, handle: SandboxHandle | None, command: _Resume) -> SandboxHandle | None:
        paused = self.paused
        if handle is not None or paused is None:
            command.answer.set_exception(Conflict(f"sandbox {self.sandbox_id!r} is not paused"))
            return handle
        try:
            handle = await self._run_again(making, paused, command)
        except AtollError as error:
            await self._stay_paused(making, paused, lost=isinstance(error, MemoryLost))
            command.answer.set_exception(error)
            command.answer.exception()  # the caller may be gone
            return None
        self.paused = None
        self._move_if_possible(SandboxState.RUNNING)
        await self._limit_disk(making.spec, handle, making.spec.disk_mib_s)
        self._watch(handle)
        command.answer.set_result(handle)
        return handle

    async def _run_again(self, making: Making, paused: Paused, command: _Resume) -> SandboxHandle:
        if command.mode is PauseMode.MEMORY and paused.mode is not PauseMode.MEMORY:
            raise MemoryLost(f"sandbox {self.sandbox_id!r} was paused with its disk alone")
        try:
            if command.mode is PauseMode.MEMORY:
                self._move(SandboxState.RESUMING)
            else:
                self.log_base = directory.begin_boot(self._state_dir)
                self._state = SandboxState.RESUMING
            async with asyncio.timeout(CREATE_TIMEOUT_S):
                async with making.with_devices() as paths:
                    return await making.backend.resume(making.spec, paths, paused.record, command.mode)
        except (OSError, TimeoutError) as error:  # (TimeoutError is an OSError)
            raise CreateFailed(f"sandbox {self.sandbox_id!r} cannot be resumed: {error or 'too slow'}") from error

    async def _stay_paused(self, making: Making, paused: Paused, *, lost: bool) -> None:
        kept = making.backend.kept(self._state_dir, paused.record)
        mode = PauseMode.FILESYSTEM if lost or kept is None else kept
        self.paused = replace(paused, mode=mode)
        self._state = SandboxState.PAUSED
        try:
            await asyncio.to_thread(directory.end_pause, self._state_dir, mode, paused.record)
        except OSError as error:
            _log.error("sandbox.pause_not_settled", sandbox_id=self.sandbox_id, error=str(error))

    # The end

    def _watch(self, handle: SandboxHandle) -> None:
        self._watcher = asyncio.create_task(self._report_end(handle), name=f"watch {self.sandbox_id}")

    async def _watch_no_more(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            self._watcher = None

    async def _report_end(self, handle: SandboxHandle) -> None:
        self._commands.put_nowait(_Died(await handle.wait(), handle))

    async def _end(
        self, making: Making, handle: SandboxHandle | None, ended: Ended, keep: _Keep | None = None
    ) -> Ended:
        self._closed = True
        self._move_if_possible(SandboxState.KILLING)
        if handle is not None:
            await self._limit_disk(making.spec, handle, None)  # the device's number is somebody else's next
            if keep is not None:
                await self._free(handle)
            elif await self._end_part(handle.stop()):
                self._directories.discard(self._state_dir)
                self._stopped.set()
                await self._free(handle)
        elif self.paused is not None:
            await self._free_paused(making, self.paused)
        if keep is not None:
            await self._save(keep)
        self._directories.discard(self._state_dir)
        return ended

    async def _limit_disk(self, spec: SandboxSpec, handle: SandboxHandle, mib_s: int | None) -> None:
        """Costs nothing where no rate was asked for. A sandbox that has one does not end because it cannot be set."""
        if spec.disk_mib_s is None:
            return
        try:
            await handle.limit_disk(mib_s)
        except AtollError as error:
            _log.warning("sandbox.disk_rate", sandbox_id=self.sandbox_id, mib_s=mib_s, error=str(error))

    async def _save(self, keep: _Keep) -> None:
        try:
            await keep.save(self._state_dir)
        except Exception as error:
            keep.saved.set_exception(error)
            keep.saved.exception()  # perhaps nobody waits any more; that is no error
        else:
            keep.saved.set_result(None)

    def _move(self, state: SandboxState) -> None:
        """Raises OSError, with the earlier state still in force."""
        check_transition(self._state, state)
        directory.move(self._state_dir, state)
        self._state = state

    def _move_if_possible(self, state: SandboxState) -> None:
        """What has happened, or is to, counts even if it cannot be written down."""
        try:
            self._move(state)
        except OSError as error:
            self._state = state
            _log.warning("sandbox.state_not_written", sandbox_id=self.sandbox_id, error=str(error))

    async def _free(self, handle: SandboxHandle) -> None:
        await self._end_part(handle.kill())

    async def _free_paused(self, making: Making, paused: Paused) -> None:
        await self._end_part(making.backend.end_paused(making.spec, self._state_dir, paused.record))

    async def _end_part(self, work: Coroutine[Any, Any, None]) -> bool:
        """False: it failed, which is logged."""
        try:
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await work
        except TimeoutError:
            _log.error("sandbox.kill_timeout", sandbox_id=self.sandbox_id, seconds=KILL_TIMEOUT_S)
        except AtollError as error:
            _log.error("sandbox.not_freed", sandbox_id=self.sandbox_id, error=str(error))
        else:
            return True
        return False

    def _fail(self, error: AtollError) -> None:
        if not self.started.done():
            self.started.set_exception(error)
            # The asker may be gone (its request was cancelled); then nobody looks, and that is no error.
            self.started.exception()
        self._close()

    def _close(self) -> None:
        self._closed = True
        self._stopped.set()
        self.finished.set()
        while not self._commands.empty():
            command = self._commands.get_nowait()
            if isinstance(command, _Pause | _Resume | _Become) and not command.answer.done():
                command.answer.set_exception(SandboxGone(self.sandbox_id))
                command.answer.exception()
