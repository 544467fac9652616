"""Background tasks of one owner: referenced while they run, cancelled together, no failure unseen.

For work that is begun in callbacks of the loop, where no `async with` can stand; elsewhere an `asyncio.TaskGroup` is
the owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class OwnedTasks:
    """A set of running tasks. `on_error` is called with what one died of; without it asyncio logs that."""

    def __init__(self, on_error: Callable[[BaseException], None] | None = None) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._on_error = on_error

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
        """Runs it on the running loop, until it ends or is cancelled with the others."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def cancel(self) -> None:
        """Asks all to end."""
        for task in list(self._running):
            task.cancel()

    async def wait(self) -> None:
        """Until none runs any more. Cancelling this cancels none of them."""
        while self._running:
            await asyncio.wait(list(self._running))

    async def aclose(self) -> None:
        """Cancels all and waits for their ends. Idempotent."""
        self.cancel()
        await self.wait()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if self._on_error is not None and not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)
