"""How long rows of ended sandboxes, events and logs are kept; `run` removes the older ones."""

from __future__ import annotations

import structlog

from atoll.control.access.teams import ENDED_ROWS_KEPT
from atoll.control.clock import Clock
from atoll.control.store import Store
from atoll.control.telemetry.logbook import Logbook

EVENTS_KEPT = 100_000
EVERY_S = 3600.0

_log = structlog.get_logger("atoll.control")


class Retention:
    """What is removed is older than ENDED_ROWS_KEPT; of events, EVENTS_KEPT stay at most."""

    def __init__(self, store: Store, logbook: Logbook, clock: Clock) -> None:
        self._store = store
        self._logbook = logbook
        self._clock = clock

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._clock.sleep(EVERY_S)
            try:
                before = self._clock.now() - ENDED_ROWS_KEPT
                await self._store.forget_ended(before)
                await self._store.events.forget(before, EVENTS_KEPT)
                await self._logbook.forget(before)
            except Exception:
                _log.exception("control.sweep_failed")
