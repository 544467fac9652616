"""Teams, as far as a caller sees them: the name, and what its sandboxes came to over time.

The past is cut into stretches: as short as they can be (STEPS_S) with no more than MAX_STRETCHES of them. Of each it is
counted how many sandboxes there were at most at once and how many began per second. The past goes as far back as ended
sandboxes are remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from atoll.control.access.auth import Caller
from atoll.control.clock import Clock
from atoll.control.store import Store
from atoll.model.errors import Forbidden, InvalidRequest

ENDED_ROWS_KEPT = timedelta(days=7)
"""How long an ended sandbox is remembered: its row, its log, and its part in these figures."""
DEFAULT_SPAN = timedelta(days=1)
STEPS_S = (5, 15, 30, 60, 120, 300, 900)
MAX_STRETCHES = 720


@dataclass(frozen=True, slots=True)
class Usage:
    """A stretch of time that begins at `at`."""

    at: datetime
    concurrent: int
    start_rate: float


class TeamService:
    """What handlers ask about a team."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def name(self, caller: Caller) -> str:
        """The caller's own team's."""
        return await self._store.keys.team_name(caller.team_id) or caller.team_id

    async def usage(self, caller: Caller, team_id: str, start_s: int | None, end_s: int | None) -> list[Usage]:
        """Oldest first, without gaps; from `start_s` to `end_s` in Unix seconds, the last day by default.

        Raises Forbidden: not the caller's team. InvalidRequest: the end is before the start.
        """
        if team_id != caller.team_id:
            raise Forbidden("an API key sees the metrics of its own team only")
        now = int(self._clock.now().timestamp())
        end = now if end_s is None else end_s
        start = end - int(DEFAULT_SPAN.total_seconds()) if start_s is None else start_s
        if start > end:
            raise InvalidRequest(f"start ({start}) is after end ({end})")
        start = max(start, now - int(ENDED_ROWS_KEPT.total_seconds()))
        end = min(end, now)
        if start > end:
            return []  # wholly in the future, or further back than anything is remembered
        step = step_for(end - start)
        found = {one.at: one for one in await self._store.usage.stretches(team_id, start, end, step)}
        level = await self._store.usage.alive_at(team_id, start)
        base, usage = level, []
        for at in range(start, end + 1, step):
            stretch = found.get(at)
            # What it began with counts too: a stretch in which all only ended had its most at its beginning.
            peak = level if stretch is None else max(level, base + stretch.peak)
            rate = 0.0 if stretch is None else stretch.started / step
            usage.append(Usage(datetime.fromtimestamp(at, UTC), max(0, peak), rate))
            level += stretch.change if stretch is not None else 0
        return usage


def step_for(span_s: int) -> int:
    """Seconds of a stretch, for a span of that many."""
    return next((step for step in STEPS_S if span_s // step < MAX_STRETCHES), STEPS_S[-1])
