"""When a delivery that failed is tried again: a pure schedule."""

from __future__ import annotations

from datetime import timedelta

DELAYS_S = (5, 30, 120, 600, 1800, 7200)
"""After the first attempt, the second, …: seven attempts within three hours."""

MAX_ATTEMPTS = len(DELAYS_S) + 1
SPREAD = 0.2


def delay_after(attempts: int, luck: float) -> timedelta | None:
    """How long to wait after so many failed attempts; None: give up.

    `luck` from 0 to 1 spreads the wait by SPREAD, so that what failed together does not come back together.
    """
    if not 1 <= attempts < MAX_ATTEMPTS:
        return None
    return timedelta(seconds=DELAYS_S[attempts - 1] * (1 + SPREAD * luck))
