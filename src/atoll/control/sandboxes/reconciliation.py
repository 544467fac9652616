"""Store and nodes brought into agreement: at start (`recovery` decides), and after a node was away."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from atoll.control.access.teams import ENDED_ROWS_KEPT
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.nodes.kill import kill
from atoll.control.sandboxes.ending import SandboxEnding
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.lookup import VISIBLE
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.recovery import decide
from atoll.control.store import Store
from atoll.model.errors import NodeUnreachable, PlatformError
from atoll.model.events import EventType
from atoll.model.sandbox import EndReason, SandboxRecord, SandboxState
from atoll.model.seams import NodeClient

_log = structlog.get_logger("atoll.control")


class Reconciliation:
    """Also rebuilds what is kept in memory only: the quota's counts and the deadlines."""

    def __init__(
        self,
        *,
        store: Store,
        nodes: Mapping[str, NodeClient],
        clock: Clock,
        background: Background,
        quota: SandboxQuota,
        expiry: Expiry,
        journal: Journal,
        ending: SandboxEnding,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._clock = clock
        self._background = background
        self._quota = quota
        self._expiry = expiry
        self._journal = journal
        self._ending = ending

    async def recover(self) -> None:
        """Settles what an earlier server left: see `recovery`. Before the first request."""
        found = await self._alive()
        alive = {sandbox_id: node_id for node_id, ids in found.items() for sandbox_id in ids}
        silent = self._nodes.keys() - found.keys()
        unfinished = [state for state in SandboxState if state is not SandboxState.ENDED]
        records = {record.sandbox_id: record for record in await self._store.in_states(unfinished)}
        for sandbox_id in records.keys() | alive.keys():
            if sandbox_id in records and records[sandbox_id].node_id in silent:
                continue  # only its node knows; `node_came_back` settles it
            await self._settle(sandbox_id, records.get(sandbox_id), alive.get(sandbox_id))
        forgotten = await self._store.forget_ended(self._clock.now() - ENDED_ROWS_KEPT)
        _log.info("control.recovered", found=len(records), alive=len(alive), forgotten=forgotten)

    def node_came_back(self) -> None:
        """A node was started again, or its connection was lost for a while: what both know may differ."""
        self._background.begin(self._reconcile())

    async def _reconcile(self) -> None:
        """What runs nowhere has ended; what the store lacks is ended. What is being made or ended settles itself."""
        known = {record.sandbox_id: record for record in await self._store.in_states([SandboxState.RUNNING])}
        alive = await self._alive()
        for sandbox_id, record in known.items():
            if record.node_id in alive and sandbox_id not in alive[record.node_id]:
                detail = "its node was started again without it"
                await self._ending.ended_by_itself(sandbox_id, EndReason.LOST, detail)
        for node_id, ids in alive.items():
            for sandbox_id in ids - known.keys():
                if await self._store.find(sandbox_id) is None:
                    await kill(self._nodes[node_id], sandbox_id, EndReason.LOST, self._clock)

    async def _alive(self) -> dict[str, set[str]]:
        """By node, of those that answer."""
        alive: dict[str, set[str]] = {}
        for node_id, node in self._nodes.items():
            try:
                alive[node_id] = {one.sandbox_id for one in await node.sandboxes()}
            except NodeUnreachable as error:
                _log.error("node.unreachable", node=node_id, error=str(error))
        return alive

    async def _settle(self, sandbox_id: str, record: SandboxRecord | None, node_id: str | None) -> None:
        state = record.state if record is not None else None
        verdict = decide(state, node_id is not None, record.end_reason if record is not None else None)
        if verdict.kill and node_id is not None:
            reason = verdict.reason or EndReason.LOST
            try:
                await kill(self._nodes[node_id], sandbox_id, reason, self._clock)
            except PlatformError:
                # A start does not fail for one sandbox that will not end.
                self._quota.take(sandbox_id, record.team_id if record else "", node_id, beyond_quota=True)
                self._ending.finish_later(sandbox_id, reason)
                return
        if record is None:
            return
        if verdict.state is not state:
            _log.warning("sandbox.settled", sandbox_id=sandbox_id, found=record.state.value, now=verdict.state.value)
            if verdict.reason is not None:
                free_key = verdict.reason is EndReason.CREATE_FAILED
                await self._store.end(sandbox_id, verdict.reason, self._clock.now(), free_key=free_key)
                if not free_key:
                    self._journal.note(EventType.KILLED, sandbox_id)
            else:
                await self._store.transition(sandbox_id, verdict.state)
        if verdict.state in VISIBLE:
            self._quota.take(sandbox_id, record.team_id, record.node_id, beyond_quota=True)
        if verdict.state is SandboxState.RUNNING:
            self._expiry.set(sandbox_id, record.end_at)
