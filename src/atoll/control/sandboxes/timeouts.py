"""When a sandbox ends: moved by its caller, at most as far as the operator's policy allows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from atoll.control.access.auth import Caller
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.lookup import SandboxLookup
from atoll.control.sandboxes.orders import Policy, check_timeout
from atoll.control.store import Store
from atoll.model.errors import SandboxNotFound
from atoll.model.events import EventType
from atoll.model.sandbox import SandboxRecord


class SandboxTimeouts:
    """Moves deadlines, in the store and in `Expiry`."""

    def __init__(
        self, *, store: Store, lookup: SandboxLookup, policy: Policy, clock: Clock, expiry: Expiry, journal: Journal
    ) -> None:
        self._store = store
        self._lookup = lookup
        self._policy = policy
        self._clock = clock
        self._expiry = expiry
        self._journal = journal

    async def set_timeout(self, caller: Caller, sandbox_id: str, timeout_s: int) -> None:
        """It ends that many seconds from now. Raises InvalidRequest, SandboxNotFound."""
        check_timeout(timeout_s, self._policy)
        record = await self._lookup.get(caller, sandbox_id)
        await self._move_end(replace(record, end_at=self._clock.now() + timedelta(seconds=timeout_s)))

    async def prolong(self, caller: Caller, sandbox_id: str, timeout_s: int) -> SandboxRecord:
        """It ends no sooner than that many seconds from now; never sooner than before.

        Raises InvalidRequest, SandboxNotFound.
        """
        check_timeout(timeout_s, self._policy)
        record = await self._lookup.get(caller, sandbox_id)
        end_at = self._clock.now() + timedelta(seconds=timeout_s)
        if end_at <= record.end_at:
            return record
        record = replace(record, end_at=end_at)
        await self._move_end(record)
        return record

    async def _move_end(self, record: SandboxRecord) -> None:
        if not await self._store.set_end_at(record.sandbox_id, record.end_at):
            raise SandboxNotFound(record.sandbox_id)
        self._expiry.set(record.sandbox_id, record.end_at)
        self._journal.note(EventType.UPDATED, record.sandbox_id, set_timeout=record.end_at.isoformat())
