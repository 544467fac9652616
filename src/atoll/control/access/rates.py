"""How often a key may ask for what leaves a trace: each such call is an event, which is stored and sent to webhooks.

Beyond its rate a key is refused (429, the SDKs try again by themselves), and nobody else notices. Pure: the caller's
clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from atoll.model.errors import RateExceeded

PER_S = 30.0
BURST = 300.0
_MOST_KEPT = 10_000
_COUNTED = re.compile(r"/events/.*|(?:/v2)?/sandboxes/[^/]*/(?:timeout|refreshes|connect|resume|network)")


def is_counted(method: str, path: str) -> bool:
    """Whether a call is one of them: all of `/events`, and what changes a sandbox that runs."""
    return (path.startswith("/events/") or method != "GET") and _COUNTED.fullmatch(path) is not None


class CallRates:
    """A token bucket for each key that calls."""

    def __init__(self, clock: Callable[[], float], per_s: float = PER_S, burst: float = BURST) -> None:
        self._clock = clock
        self._per_s = per_s
        self._burst = burst
        self._owed: dict[str, tuple[float, float]] = {}
        """By key: when it was counted last, and how many calls were not yet made up for at that time."""

    def count(self, key: str) -> None:
        """Raises RateExceeded; a call that is refused does not count."""
        now = self._clock()
        since, owed = self._owed.get(key, (now, 0.0))
        owed = max(0.0, owed - (now - since) * self._per_s) + 1
        if owed > self._burst:
            raise RateExceeded(
                f"more than {self._per_s:.0f} calls a second with this key that change sandboxes or read events",
                hint="call less often; one timeout that is long enough needs no prolonging",
            )
        if len(self._owed) > _MOST_KEPT:
            self._owed = {one: seen for one, seen in self._owed.items() if seen[1] > (now - seen[0]) * self._per_s}
        self._owed[key] = (now, owed)
