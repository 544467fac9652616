"""Work that must outlive the request that asked for it, in a task group that it cannot bring down by failing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger("atoll.control")


class Background:
    """`async with Background() as background:`; leaving waits for everything that was begun."""

    def __init__(self) -> None:
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Its outcome. Cancelling the awaiting task (through `asyncio.shield`) does not stop it."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._tasks.create_task(_settle(work, outcome))
        return outcome

    def keep_running(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that runs until it is cancelled by the caller. A failure is logged."""
        return self._tasks.create_task(_guard(work))


async def _settle(work: Coroutine[Any, Any, T], outcome: asyncio.Future[T]) -> None:
    try:
        result = await work
    except asyncio.CancelledError:
        outcome.cancel()
        raise
    except Exception as error:
        if not outcome.done():
            outcome.set_exception(error)
            outcome.exception()  # perhaps nobody waits any more; that is no error
    else:
        if not outcome.done():
            outcome.set_result(result)


async def _guard(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        _log.exception("background.failed")
