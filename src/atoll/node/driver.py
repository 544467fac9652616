"""One task owns one sandbox on this node, from before it exists until nothing of it is left.

    create, adopted ──► the states of model/lifecycle.py, each written down in its directory ──► finished
       └── failed: what was made is undone, in reverse order ─────────────────────────────────────┘

The directory is the sandbox. A process is only its RUNNING form: the end of one ends the sandbox because nothing else
of it is kept yet, not because the driver needs it. Everybody else sends the driver commands; only `stats` and `dial` go
straight to the handle, because they change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from atoll.isolation import directory
from atoll.isolation.base import ExitReport, IsolationBackend, SandboxHandle
from atoll.model.errors import AtollError, CreateFailed, SandboxGone
from atoll.model.lifecycle import check_transition
from atoll.model.sandbox import SandboxPaths, SandboxSpec, SandboxState

CREATE_TIMEOUT_S = 30.0
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


@dataclass(frozen=True, slots=True)
class Ended:
    """How a sandbox's driver came to its end. `asked` is True for a kill, False when the guest died by itself."""

    sandbox_id: str
    asked: bool
    detail: str


class SandboxDriver:
    """`run` is the task; every other method may be called from any other task at any time."""

    def __init__(
        self, sandbox_id: str, state_dir: Path, make: Callable[[Path], None], discard: Callable[[Path], None]
    ) -> None:
        self.sandbox_id = sandbox_id
        self.started: asyncio.Future[SandboxHandle] = asyncio.get_running_loop().create_future()
        self.finished = asyncio.Event()
        self._state_dir = state_dir
        self._make = make
        self._discard = discard
        self._commands: asyncio.Queue[_Kill | _Keep | _Detach | _Died] = asyncio.Queue()
        self._closed = False
        self._state = SandboxState.CREATING

    async def create(self, backend: IsolationBackend, spec: SandboxSpec, paths: SandboxPaths) -> Ended | None:
        """The task of a new sandbox. Reports the outcome through `started`; None: it never lived, or was detached.

        A failure is kept in `started` as CreateFailed (or what the backend raised).
        """
        try:
            handle = await self._create(backend, spec, paths)
        except asyncio.CancelledError:
            self._fail(CreateFailed(f"sandbox {self.sandbox_id!r} was not made: the server is stopping"))
            raise
        except AtollError as error:
            self._fail(error)
            return None
        except Exception as error:
            _log.exception("sandbox.create_failed", sandbox_id=self.sandbox_id)
            self._fail(CreateFailed(f"sandbox {self.sandbox_id!r} was not made: {error}"))
            return None
        return await self._live(handle)

    async def adopted(self, handle: SandboxHandle) -> Ended | None:
        """The task of a sandbox that an earlier server made."""
        self._state = SandboxState.RUNNING
        return await self._live(handle)

    async def kill(self) -> bool:
        """Ends it; returns once everything is freed. True if this found it alive. Bounded by KILL_TIMEOUT_S."""
        alive = not self._closed
        if alive:
            self._commands.put_nowait(_Kill())
        await self.finished.wait()
        return alive

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
        """Ends the task and leaves the sandbox running, for the next server."""
        self._commands.put_nowait(_Detach())

    async def _create(self, backend: IsolationBackend, spec: SandboxSpec, paths: SandboxPaths) -> SandboxHandle:
        async with AsyncExitStack() as undo:
            self._make(self._state_dir)
            undo.callback(self._discard, self._state_dir)
            directory.write_spec(self._state_dir, spec)
            try:
                async with asyncio.timeout(CREATE_TIMEOUT_S):
                    handle = await backend.create(spec, paths)
            except TimeoutError as error:
                raise CreateFailed(
                    f"sandbox {self.sandbox_id!r} did not start within {CREATE_TIMEOUT_S:.0f} s"
                ) from error
            undo.push_async_callback(self._free, handle)
            self._move(SandboxState.RUNNING)
            undo.pop_all()
            return handle

    async def _live(self, handle: SandboxHandle) -> Ended | None:
        self.started.set_result(handle)
        watcher = asyncio.create_task(self._watch(handle), name=f"watch {self.sandbox_id}")
        try:
            while True:
                match await self._commands.get():
                    case _Detach():
                        return None
                    case _Kill():
                        return await self._end(handle, Ended(self.sandbox_id, asked=True, detail="killed"))
                    case _Keep() as keep:
                        return await self._end(handle, Ended(self.sandbox_id, asked=True, detail="kept"), keep)
                    case _Died(report):
                        return await self._end(handle, Ended(self.sandbox_id, asked=False, detail=report.detail))
        finally:
            watcher.cancel()
            await asyncio.wait([watcher])
            self._close()

    async def _watch(self, handle: SandboxHandle) -> None:
        self._commands.put_nowait(_Died(await handle.wait()))

    async def _end(self, handle: SandboxHandle, ended: Ended, keep: _Keep | None = None) -> Ended:
        self._closed = True
        try:
            self._move(SandboxState.KILLING)
        except OSError as error:  # what is to end ends all the same
            _log.warning("sandbox.state_not_written", sandbox_id=self.sandbox_id, error=str(error))
        await self._free(handle)
        if keep is not None:
            await self._save(keep)
        self._discard(self._state_dir)
        return ended

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

    async def _free(self, handle: SandboxHandle) -> None:
        try:
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await handle.kill()
        except TimeoutError:
            _log.error("sandbox.kill_timeout", sandbox_id=self.sandbox_id, seconds=KILL_TIMEOUT_S)
        except AtollError as error:
            _log.error("sandbox.not_freed", sandbox_id=self.sandbox_id, error=str(error))

    def _fail(self, error: AtollError) -> None:
        if not self.started.done():
            self.started.set_exception(error)
            # The asker may be gone (its request was cancelled); then nobody looks, and that is no error.
            self.started.exception()
        self._close()

    def _close(self) -> None:
        self._closed = True
        self.finished.set()
