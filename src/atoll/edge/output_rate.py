"""How many bytes a second a sandbox may send to its clients, all its connections together.

A sandbox that floods its clients keeps the server's loop busy for everybody. Beyond its rate its connections are not
read for a while; what it writes then waits in the sandbox, and blocks the program that writes it: nothing is lost.
Pure: the caller's clock.
"""

from __future__ import annotations

from collections.abc import Callable

_BURST_S = 0.5
"""What may come at once after a silence, in seconds of the rate."""


class OutputRates:
    """A token bucket for each sandbox that sends. `limit` in bytes a second; None: no limit, nothing is counted."""

    def __init__(self, limit: int | None, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._spent: dict[str, tuple[float, float]] = {}
        """By sandbox: when it was counted last, and how many bytes were not yet made up for at that time."""

    @property
    def limited(self) -> bool:
        return self._limit is not None

    def spend(self, sandbox_id: str, size: int) -> float:
        """`size` bytes have come. Returns for how many seconds no more should be read (0.0: go on)."""
        if self._limit is None:
            return 0.0
        now = self._clock()
        since, owed = self._spent.get(sandbox_id, (now, 0.0))
        owed = max(0.0, owed - (now - since) * self._limit) + size
        self._spent[sandbox_id] = (now, owed)
        return max(0.0, owed / self._limit - _BURST_S)

    def sweep(self) -> None:
        """Forgets sandboxes that have made up for everything."""
        if self._limit is not None:
            now, limit = self._clock(), self._limit
            self._spent = {
                sandbox: (since, owed) for sandbox, (since, owed) in self._spent.items() if owed > (now - since) * limit
            }
