"""Sandboxes started ahead of need, for the template that was asked for last.

A cold start takes some tenths of a second, most of it gVisor's and the interpreter's; one that waits only needs to be
given its identity. Restoring a checkpoint is slower than this, and not possible with a way out (docs/decisions/0021).

Owns what waits. It is used by one backend, in one event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from atoll.isolation.gvisor.start import LaunchContext, LaunchOrder, PooledSandbox, discard, launch_waiting
from atoll.isolation.linux.process_identity import has_ended
from atoll.model.errors import AtollError
from atoll.model.sandbox import Limits

_log = structlog.get_logger("atoll.gvisor")

_REFILL_AFTER_S = 0.05
_AFTER_FAILURE_S = 5.0


@dataclass(frozen=True, slots=True)
class Kind:
    """What cannot be changed once one waits: layers (by identity too), disk, what gVisor shows of CPUs and memory."""

    lowers: tuple[str, ...]
    identities: tuple[tuple[int, int], ...]
    cpu_count: int
    memory_mib: int
    disk_mib: int

    @staticmethod
    def of(lowers: Sequence[Path], limits: Limits) -> Kind:
        """Raises OSError: a layer is missing."""
        paths = tuple(str(path.absolute()) for path in lowers)
        found = [os.stat(path) for path in paths]  # one may have been built anew under its old path
        return Kind(
            paths,
            tuple((one.st_dev, one.st_ino) for one in found),
            limits.cpu_count,
            limits.memory_mib,
            limits.disk_mib,
        )


class Pool:
    """`size` 0 keeps nothing ready."""

    def __init__(self, context: LaunchContext, place: Path, size: int) -> None:
        self._context = context
        self._place = place
        self._size = size
        self._ready: list[tuple[Kind, PooledSandbox]] = []
        self._next: tuple[Kind, Limits] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def ready(self) -> int:
        """How many wait now."""
        return len(self._ready)

    async def take(self, kind: Kind, limits: Limits) -> PooledSandbox | None:
        """One that waits, if there is one of that kind; the pool then refills itself with such."""
        self._next = (kind, limits)
        found: PooledSandbox | None = None
        for entry in list(self._ready):
            if has_ended(entry[1].pidfd):
                self._ready.remove(entry)
                await discard(self._context, entry[1])
            elif entry[0] == kind and found is None:
                self._ready.remove(entry)
                found = entry[1]
        self._refill_soon()
        return found

    async def aclose(self) -> None:
        """Ends all that wait. Idempotent."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        ready, self._ready = self._ready, []
        await asyncio.gather(*(discard(self._context, waiting) for _, waiting in ready))

    def _refill_soon(self) -> None:
        if self._size and not self._closed and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._refill())

    async def _refill(self) -> None:
        """One at a time: a create that waits now needs the processors more."""
        while self._next is not None and not self._closed:
            await asyncio.sleep(_REFILL_AFTER_S)
            kind, limits = self._next
            others = [entry for entry in self._ready if entry[0] != kind]
            if len(self._ready) - len(others) >= self._size:
                return
            for entry in others:
                self._ready.remove(entry)
                await discard(self._context, entry[1])
            place = self._place / secrets.token_hex(6)
            try:
                self._ready.append((kind, await launch_waiting(self._context, LaunchOrder(kind.lowers, limits, place))))
            except asyncio.CancelledError:
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
                raise
            except AtollError as error:
                await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
                _log.warning("gvisor.not_kept_ready", error=str(error))
                await asyncio.sleep(_AFTER_FAILURE_S)
                return
