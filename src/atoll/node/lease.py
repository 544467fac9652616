"""What a node on another machine runs, it runs on a lease that control renews every second.

    leased ──LEASE over──► everything that runs stands still ──renewed──► it goes on

A node that is cut off from control cannot know whether its sandboxes were begun anew elsewhere. Control does that only
when the lease must be over, and ends the earlier ones before it renews: so nothing runs twice. A renewal counts from
when the node sent the word that it answers, by the node's own clock: one that was long on its way renews nothing. A
node that starts has no lease: what it adopts stands still until control has looked at it.
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
_FREEZE_WITHIN_S = 2.0
"""One that takes longer runs on until the next look: a renewal of all others waits for it."""

_log = structlog.get_logger("atoll.node")


def now() -> float:
    """Seconds since the machine was started, those in which it slept too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """`run` is its task. Without `is_leased` everything runs always. `clock`: as `now`."""

    def __init__(self, live: LiveSandboxes, *, is_leased: bool, clock: Callable[[], float] = now) -> None:
        self._live = live
        self._is_leased = is_leased
        self._clock = clock
        self._until = float("-inf")
        self._standing: dict[str, SandboxHandle] = {}
        self._unkept: set[str] = set()
        self._held = asyncio.Event()
        self._turn = asyncio.Lock()

    async def renew(self, lease_s: float, since: float) -> None:
        """Until `lease_s` after `since`. What stood still goes on when this returns."""
        if since <= self._clock():  # else it is of before the machine was started anew
            self._until = max(self._until, since + lease_s)
        if self._is_over():
            return
        if self._standing or self._turn.locked():
            async with self._turn:
                await self._go_on()
        self._held.set()

    async def in_force(self) -> None:
        """Returns once there is a lease and nothing stands still without it: for who needs a guest's answer."""
        if self._is_leased:
            await self._held.wait()

    async def run(self) -> None:
        """Until it is cancelled."""
        while self._is_leased:
            async with self._turn:
                if self._is_over():
                    self._held.clear()
                    await self._stand_still()
            await asyncio.sleep(_LOOK_EVERY_S)

    def _is_over(self) -> bool:
        return self._clock() >= self._until

    async def _stand_still(self) -> None:
        running = self._live.handles()
        self._unkept &= running.keys()
        self._standing = {name: one for name, one in self._standing.items() if running.get(name) is one}
        # At once: one that does not freeze keeps no other running.
        await asyncio.gather(*(self._freeze(name, handle) for name, handle in running.items()))

    async def _freeze(self, name: str, handle: SandboxHandle) -> None:
        live = self._live.get(name)
        if name in self._standing or live is None or live.turn.locked():  # else the next look finds it
            return
        try:
            async with live.turn, asyncio.timeout(_FREEZE_WITHIN_S):
                await handle.freeze()
            self._standing[name] = handle
            _log.warning("lease.over", sandbox_id=name)
        except (AtollError, TimeoutError) as error:
            if name not in self._unkept:
                _log.error("lease.not_kept", sandbox_id=name, error=str(error) or "it does not freeze")
            self._unkept.add(name)

    async def _go_on(self) -> None:
        standing, self._standing = self._standing, {}
        await asyncio.gather(*(self._thaw(name, handle) for name, handle in standing.items()))

    async def _thaw(self, name: str, handle: SandboxHandle) -> None:
        live = self._live.get(name)
        if live is None:
            return
        async with live.turn:
            if live.handle is not handle:  # it was paused meanwhile
                return
            try:
                await handle.thaw()
                _log.info("lease.renewed", sandbox_id=name)
            except AtollError as error:
                _log.warning("sandbox.not_thawed", sandbox_id=name, error=str(error))
