"""How much of the gateway a sandbox, and all together, may use: what may be open at once, how fast it may come."""

from __future__ import annotations

import resource
from collections.abc import Callable

_USUAL_KIB = 128
"""Of a connection whose two sides both have stopped to read."""


class Budget:
    """Places that all sandboxes of a server share; each stands for a few descriptors."""

    def __init__(self, places: int) -> None:
        self.free = places

    @staticmethod
    def of_this_process(memory_mib: int) -> Budget:
        """As many as its descriptors are for, and its memory, when most connections hold what they usually hold."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return Budget(max(64, min(min(soft, 1 << 20) // 8, memory_mib * 1024 // _USUAL_KIB)))

    def take(self) -> bool:
        """False: none is left."""
        if self.free <= 0:
            return False
        self.free -= 1
        return True

    def give(self) -> None:
        """One that was taken is free again."""
        self.free += 1


class Traffic:
    """How many bytes pass in a second; who is too fast is not read for a while. The clock is monotonic seconds."""

    _AT_ONCE_S = 0.25
    """What may come at once after a silence, in seconds of the rate."""

    def __init__(self, bytes_per_s: int | None, clock: Callable[[], float]) -> None:
        self.bytes_per_s = bytes_per_s
        """May be set anew at any time; None: no limit."""
        self._clock = clock
        self._owed = 0.0
        self._at = clock()

    def spend(self, size: int) -> float:
        """`size` bytes have come. Returns for how many seconds no more should be read (0.0: go on)."""
        if self.bytes_per_s is None:
            return 0.0
        now = self._clock()
        self._owed = max(0.0, self._owed - (now - self._at) * self.bytes_per_s) + size
        self._at = now
        return max(0.0, self._owed / self.bytes_per_s - self._AT_ONCE_S)


class Pace:
    """A token bucket: `per_s` on average, `burst` at once. The clock is monotonic seconds."""

    def __init__(self, per_s: float, burst: int, clock: Callable[[], float]) -> None:
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()

    def take(self) -> float:
        """Takes one in any case; returns in how many seconds it is there."""
        self._refill()
        self._tokens -= 1
        return max(0.0, -self._tokens / self._per_s)

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now

    def go(self) -> bool:
        """False: too fast; ask again later."""
        self._refill()
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
