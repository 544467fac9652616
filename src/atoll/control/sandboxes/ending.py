"""How sandboxes end: killed by a caller, at their timeout, or found dead by their node.

The store says KILLING before the node is asked, which nobody is shown any more; ENDED follows the answer, and a server
that is killed in between writes it when it starts. A kill that the node could not carry out is tried again every
RETRY_S until it succeeds: `run` is the task that does so.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from atoll.control.access.auth import Caller
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.nodes.kill import kill
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.ids import plain_id
from atoll.control.sandboxes.lookup import SandboxLookup
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.sleeping import SleepingRoutes
from atoll.control.sandboxes.telemetry import SandboxTelemetry
from atoll.control.store import Store
from atoll.model.events import EventType
from atoll.model.sandbox import EndReason, SandboxRecord

RETRY_S = 30.0
"""Between attempts at an end that the machine, not the caller, stands in the way of."""

_log = structlog.get_logger("atoll.control")


class SandboxEnding:
    """Callers that end one sandbox at the same time share one end."""

    def __init__(
        self,
        *,
        store: Store,
        nodes: NodeRegistry,
        lookup: SandboxLookup,
        clock: Clock,
        background: Background,
        quota: SandboxQuota,
        expiry: Expiry,
        journal: Journal,
        telemetry: SandboxTelemetry,
        sleeping: SleepingRoutes,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._lookup = lookup
        self._clock = clock
        self._background = background
        self._quota = quota
        self._expiry = expiry
        self._journal = journal
        self._telemetry = telemetry
        self._sleeping = sleeping
        self._ending: dict[str, asyncio.Future[bool]] = {}
        self._unfinished: dict[str, EndReason] = {}
        self._something_unfinished = asyncio.Event()

    async def kill(self, caller: Caller, sandbox_id: str) -> None:
        """Returns when it and all it had are gone. Raises SandboxNotFound; PlatformError if it could not be ended."""
        plain = plain_id(sandbox_id)
        if plain is None or self._quota.team_of(plain) != caller.team_id:
            plain = (await self._lookup.get(caller, sandbox_id)).sandbox_id
        while not await self._end(plain, EndReason.KILLED):
            # It has ended meanwhile (then this raises), or what ended it was a timeout that was put off just then.
            await self._lookup.get(caller, sandbox_id)

    async def abandon(self, sandbox_id: str) -> None:
        """Ends one whose creator left before it got the id."""
        await self._end(sandbox_id, EndReason.KILLED)

    async def kill_all(self) -> None:
        """Ends every sandbox, for a server that keeps none."""
        ends = (self._end(sandbox_id, EndReason.KILLED) for sandbox_id in self._quota.all_with_paused())
        for outcome in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(outcome, BaseException):
                _log.error("sandbox.not_ended", error=str(outcome))

    async def ended_by_itself(self, sandbox_id: str, reason: EndReason, detail: str) -> None:
        """Its node found that it has ended."""
        if await self._store.end(sandbox_id, reason, self._clock.now()):
            _log.warning("sandbox.ended", sandbox_id=sandbox_id, reason=reason.value, detail=detail)
            self._journal.note(EventType.KILLED, sandbox_id)
        self._expiry.forget(sandbox_id)
        self._unfinished.pop(sandbox_id, None)
        self._release(sandbox_id)

    def expire(self, sandbox_id: str) -> None:
        """Its timeout has passed: ends it in the background, unless the timeout was put off meanwhile."""
        self._background.begin(self._expire(sandbox_id))

    def finish_later(self, sandbox_id: str, reason: EndReason) -> None:
        """Its node failed to end it: `run` tries again."""
        self._unfinished[sandbox_id] = reason
        self._something_unfinished.set()

    async def run(self) -> None:
        """Finishes what failed, until it is cancelled."""
        while True:
            await self._something_unfinished.wait()
            await self._clock.sleep(RETRY_S)
            # Together: a node that does not answer keeps nothing of another waiting.
            await asyncio.gather(*(self._finish_again(*one) for one in list(self._unfinished.items())))
            if not self._unfinished:
                self._something_unfinished.clear()

    async def _finish_again(self, sandbox_id: str, reason: EndReason) -> None:
        try:
            await self._finish(sandbox_id, reason)
        except Exception:
            _log.exception("sandbox.still_not_ended", sandbox_id=sandbox_id)
        else:
            self._unfinished.pop(sandbox_id, None)

    async def _expire(self, sandbox_id: str) -> None:
        try:
            await self._end(sandbox_id, EndReason.TIMEOUT)
        except Exception:
            _log.exception("sandbox.expiry_failed", sandbox_id=sandbox_id)
            if sandbox_id not in self._unfinished:
                # Not even begun: the store failed. It must not run for ever for that.
                self._expiry.set(sandbox_id, self._clock.now() + timedelta(seconds=RETRY_S))

    async def _end(self, sandbox_id: str, reason: EndReason) -> bool:
        """False: it was ended already, or its end was put off meanwhile."""
        if sandbox_id not in self._ending:
            ending = self._background.begin(self._end_now(sandbox_id, reason))
            self._ending[sandbox_id] = ending
            ending.add_done_callback(lambda _: self._ending.pop(sandbox_id, None))
        return await asyncio.shield(self._ending[sandbox_id])

    async def _end_now(self, sandbox_id: str, reason: EndReason) -> bool:
        due_by = self._clock.now() if reason is EndReason.TIMEOUT else None
        record = await self._store.begin_kill(sandbox_id, reason, due_by)
        if record is None:
            return False
        self._expiry.forget(sandbox_id)
        try:
            await self._end_on_node(sandbox_id, reason)
        except BaseException:
            self.finish_later(sandbox_id, reason)
            raise
        self._release(sandbox_id)
        self._background.keep_running(self._note_ended(sandbox_id, reason, record))
        return True

    async def _finish(self, sandbox_id: str, reason: EndReason) -> None:
        """Carries out a kill that the store has written down."""
        await self._end_on_node(sandbox_id, reason)
        await self._write_ended(sandbox_id, reason, sandbox_id)
        self._release(sandbox_id)

    async def _end_on_node(self, sandbox_id: str, reason: EndReason) -> None:
        node_id = self._quota.node_of(sandbox_id)
        if node_id is not None and not self._nodes.is_lost(node_id):  # what returns with one is asked to end it
            await kill(self._nodes.client(node_id), sandbox_id, reason, self._clock)

    async def _note_ended(self, sandbox_id: str, reason: EndReason, record: SandboxRecord) -> None:
        try:
            await self._write_ended(sandbox_id, reason, record)
        except Exception as error:  # it says KILLING, which it was
            _log.error("sandbox.end_not_written", sandbox_id=sandbox_id, error=str(error))
            self.finish_later(sandbox_id, reason)

    async def _write_ended(self, sandbox_id: str, reason: EndReason, what: SandboxRecord | str) -> None:
        if await self._store.end(sandbox_id, reason, self._clock.now()):
            self._journal.note(EventType.KILLED, what)
        _log.info("sandbox.ended", sandbox_id=sandbox_id, reason=reason.value)

    def _release(self, sandbox_id: str) -> None:
        """It is gone: its place in the quota is free, and nothing of it stays in memory."""
        self._quota.release(sandbox_id)
        self._telemetry.forget(sandbox_id)
        self._sleeping.remove(sandbox_id)
