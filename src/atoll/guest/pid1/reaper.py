"""Pid 1's first duty: every child that ends is reaped at once, ours and the orphans that the kernel hands us.

An un-reaped zombie counts against the sandbox's pids limit: a fork bomb would leave it unable to fork for ever.
One SIGCHLD handler (asyncio's wake-up descriptor) and `waitid`: no thread, no polling, no descriptor per child.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

_BATCH = 256
"""Children reaped in one turn of the loop; a storm of orphans must not starve the answers."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: `code` by itself, or `signal` that killed it."""

    code: int
    signal: int | None = None

    @staticmethod
    def from_status(status: int) -> Exit:
        """From a wait status."""
        if os.WIFSIGNALED(status):
            return Exit(-1, os.WTERMSIG(status))
        return Exit(os.WEXITSTATUS(status))


class Reaper:
    """Notifies the waiter when a child has ended. Exactly one per guest."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watchers: dict[int, Callable[[Exit], None]] = {}

    def start(self) -> None:
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        # A child may have ended before the handler stood.
        self._loop.call_soon(self._reap)

    def watch(self, pid: int, ended: Callable[[Exit], None]) -> None:
        """Calls `ended` once, from the loop, when `pid` is reaped. Call it in the same turn as `spawn`: no race."""
        self._watchers[pid] = ended

    async def wait(self, pid: int) -> Exit:
        """Until `pid` ends. For a child spawned in this same turn of the loop; cancel-safe."""
        done: asyncio.Future[Exit] = self._loop.create_future()
        self.watch(pid, lambda how: None if done.done() else done.set_result(how))
        return await done

    def _reap(self) -> None:
        for _ in range(_BATCH):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._watchers.pop(pid, None)
            if ended is not None:
                ended(Exit.from_status(status))
        self._loop.call_soon(self._reap)
