"""Work of a build that needs its node, carried through a restart of the node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from atoll.control.templates.build_log import BuildLog
from atoll.model.errors import NodeUnreachable

T = TypeVar("T")

BACK_WITHIN_S = 120.0
"""From the first call of the work that was not answered; anew after an attempt that took longer."""
_PAUSE_S = 1.0


async def despite_restarts(work: Callable[[], Awaitable[T]], log: BuildLog) -> T:
    """What `work` returns; it is begun again where its node does not answer. Raises NodeUnreachable: for too long."""
    deadline: float | None = None
    clock = asyncio.get_running_loop().time
    while True:
        began = clock()
        try:
            return await work()
        except NodeUnreachable as error:
            now = clock()
            if deadline is None or now - began > BACK_WITHIN_S:  # it was back meanwhile, and has gone again
                deadline = now + BACK_WITHIN_S
            if now > deadline:
                raise
            log.write(f"{error}: this step begins again when it is back", level="warn")
            await asyncio.sleep(_PAUSE_S)
