"""What a node on another machine runs, it runs on a lease that control renews every second.

    leased ──LEASE over──► everything that runs stands still ──renewed──► it goes on

A node that is cut off from control cannot know whether its sandboxes were begun anew elsewhere. Control does that only
when the lease must be over, and ends the earlier ones before it renews: so nothing runs twice. A node that starts has
no lease: what it adopts stands still until control has looked at it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from atoll.isolation.base import SandboxHandle
from atoll.model.errors import AtollError
from atoll.node.live import LiveSandboxes

_LOOK_EVERY_S = 0.25

_log = structlog.get_logger("atoll.node")


class Lease:
    """`run` is its task. Without `is_leased` everything runs always. `clock`: monotonic seconds."""

    def __init__(self, live: LiveSandboxes, *, is_leased: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._live = live
        self._is_leased = is_leased
        self._clock = clock
        self._until = float("-inf")
        self._standing: dict[str, SandboxHandle] = {}
        self._unkept: set[str] = set()
        self._turn = asyncio.Lock()

    async def renew(self, lease_s: float) -> None:
        """What stood still goes on when this returns."""
        self._until = max(self._until, self._clock() + lease_s)
        if self._standing:
            async with self._turn:
                await self._go_on()

    async def run(self) -> None:
        """Until it is cancelled."""
        while self._is_leased:
            async with self._turn:
                if self._clock() >= self._until:
                    await self._stand_still()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _stand_still(self) -> None:
        running = self._live.handles()
        self._unkept &= running.keys()
        self._standing = {name: one for name, one in self._standing.items() if running.get(name) is one}
        for name, handle in running.items():
            live = self._live.get(name)
            if name in self._standing or live is None or live.turn.locked():  # else the next look finds it
                continue
            try:
                async with live.turn:
                    await handle.freeze()
                self._standing[name] = handle
                _log.warning("lease.over", sandbox_id=name)
            except AtollError as error:
                if name not in self._unkept:
                    _log.error("lease.not_kept", sandbox_id=name, error=str(error))
                self._unkept.add(name)

    async def _go_on(self) -> None:
        standing, self._standing = self._standing, {}
        for name, handle in standing.items():
            try:
                await handle.thaw()
                _log.info("lease.renewed", sandbox_id=name)
            except AtollError as error:
                _log.warning("sandbox.not_thawed", sandbox_id=name, error=str(error))
