"""When a sandbox's memory is used up: the guest ends the largest processes, and the sandbox lives on.

To the host's kernel a gVisor sandbox is one process; ended by it, everything inside would go. So the host is notified
before (`linux/full_memory.py`), and the guest, which knows the processes, chooses one, while a reserve lasts.
If the reserve is used up too and it does not answer, or there is nothing to end, the kernel decides after all.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atoll.isolation.base import GUEST_SOCKET
from atoll.isolation.linux.cgroups.full_memory import FullMemory
from atoll.isolation.linux.net import control
from atoll.model.sandbox import OomKill

RESERVE = 256 << 20
"""Bytes beyond the limit while the guest chooses: a process may take a gigabyte in a second."""

_BEYOND = 16 << 20
"""So much more than necessary is made free, or the next page would need it again."""

_LOOKS = 10
_LOOK_EVERY_S = 0.01
"""gVisor gives memory back a moment after a process has ended; waiting longer would let the others grow meanwhile."""
_LOOKS_IN_VAIN = 100
_HARDEST = 16
_ANSWER_WITHIN_S = 15.0
"""Among a hundred processes that compete for the processor, the guest's turn comes late."""

_NAME_MAX = 64
_VICTIMS_MAX = 64


class Relief:
    """One sandbox's. Owns `full`. `ended` is called for every process that was chosen, in the loop."""

    def __init__(self, full: FullMemory, state_dir: Path, ended: Callable[[OomKill], None]) -> None:
        self._full = full
        self._socket = state_dir / GUEST_SOCKET
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._loop.add_reader(full.fileno(), self._look)
        self._look()  # it may have waited since an earlier server ended

    def limit(self, limit: int) -> None:
        """A new limit, in bytes. Blocks. Raises OSError (EBUSY: more than that is in use)."""
        self._full.limit(limit)

    def close(self) -> None:
        """No more of it; what waits goes on waiting until a later server or the end."""
        self._loop.remove_reader(self._full.fileno())
        if self._task is not None:
            self._task.cancel()
        self._full.close()

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # the group has gone, and the sandbox with it
            self._full.seen()
            if self._full.is_stuck():
                self._full.give()  # also the guest may need some to answer
            if self._full.missing_bytes() and (self._task is None or self._task.done()):
                self._task = self._loop.create_task(self._relieve())

    async def _relieve(self) -> None:
        harder = 1
        with contextlib.suppress(OSError):
            while missing := self._full.missing_bytes():
                ended = await self._end_some(harder * missing + _BEYOND)
                harder = min(_HARDEST, harder * 2)  # those that share memory give back less than they seem to have
                if not ended and self._full.is_stuck():
                    self._full.let_the_kernel_decide()
                    return
                for _ in range(_LOOKS if ended else _LOOKS_IN_VAIN):
                    if not self._full.missing_bytes():
                        break
                    await asyncio.sleep(_LOOK_EVERY_S)
            await asyncio.to_thread(self._full.take_back)

    async def _end_some(self, size: int) -> bool:
        """False: nobody answers, or there is nothing to end. That is endured as long as the reserve lasts."""
        try:
            answer = await control.request(self._socket, "POST", "/relief", {"bytes": size}, within_s=_ANSWER_WITHIN_S)
        except (OSError, ValueError, TimeoutError):
            return False
        found = victims(answer)
        for one in found:
            self._ended(one)
        return bool(found)


def victims(answer: dict[str, Any]) -> list[OomKill]:
    """What the guest says, which lives inside the sandbox: checked. Pure."""
    rows = answer.get("ended")
    return [_victim(row) for row in rows[:_VICTIMS_MAX] if isinstance(row, dict)] if isinstance(rows, list) else []


def _victim(row: dict[str, Any]) -> OomKill:
    name, pid, size = row.get("name"), row.get("pid"), row.get("memory_bytes")
    return OomKill(
        name=name[:_NAME_MAX] if isinstance(name, str) and name else None,
        pid=pid if type(pid) is int and pid > 0 else None,
        memory_bytes=size if type(size) is int and size >= 0 else None,
    )
