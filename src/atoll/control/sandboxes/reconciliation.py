"""Store and nodes brought into agreement: at start (`recovery` decides), and after a node was away."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import structlog

from atoll.control.access.teams import ENDED_ROWS_KEPT
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.nodes.kill import kill
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.ending import SandboxEnding
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.lookup import VISIBLE
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.recovery import decide
from atoll.control.store import Store
from atoll.model.errors import NodeUnreachable, PlatformError
from atoll.model.events import EventType
from atoll.model.sandbox import EndReason, Limits, SandboxRecord, SandboxState
from atoll.model.seams import NodeClient

_UNFINISHED = [state for state in SandboxState if state is not SandboxState.ENDED]
_ANSWER_WITHIN_S = 10.0
"""Longer than a node is waited for that is being started again."""

_log = structlog.get_logger("atoll.control")


class Reconciliation:
    """Also rebuilds what is kept in memory only: the quota's counts and the deadlines."""

    def __init__(
        self,
        *,
        store: Store,
        nodes: NodeRegistry,
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
        self._put_off_until: defaultdict[str, set[str]] = defaultdict(set)
        """Node → what is settled when it is back."""

    async def recover(self) -> None:
        """Settles what an earlier server left: see `recovery`. Before the first request."""
        found = await self._alive()
        alive = {sandbox_id: node_id for node_id, ids in found.items() for sandbox_id in ids}
        records = {record.sandbox_id: record for record in await self._store.in_states(_UNFINISHED)}
        for sandbox_id in records.keys() | alive.keys():
            record = records.get(sandbox_id)
            if record is not None and record.node_id not in found:
                self._put_off(record)
            else:
                await self._settle(sandbox_id, record, alive.get(sandbox_id))
        forgotten = await self._store.forget_ended(self._clock.now() - ENDED_ROWS_KEPT)
        _log.info("control.recovered", found=len(records), alive=len(alive), forgotten=forgotten)

    def _put_off(self, record: SandboxRecord) -> None:
        """Only its node knows, and it does not answer: what it says when it is back settles it."""
        self._nodes.expect(record.node_id)
        self._put_off_until[record.node_id].add(record.sandbox_id)
        self._quota.take(record.sandbox_id, record.team_id, record.node_id, record.limits, beyond_quota=True)
        if record.state is SandboxState.RUNNING:
            self._expiry.set(record.sandbox_id, record.end_at)

    def node_returned(self, node_id: str) -> None:
        """It was started again, or was silent for a while: what both know may differ."""
        self._background.begin(self._reconcile(node_id))

    def node_gone(self, node_id: str) -> None:
        """It was silent for so long that its sandboxes count as lost."""
        self._background.begin(self._give_up(node_id))

    async def _reconcile(self, node_id: str) -> None:
        """What runs nowhere has ended; what the store lacks is ended. What is being made or ended settles itself."""
        running = await self._store.in_states([SandboxState.RUNNING])
        ids = await self._alive_on(node_id, self._nodes.client(node_id))
        if ids is None:
            return  # it is gone again, and will be back
        put_off = self._put_off_until.pop(node_id, set())
        for sandbox_id in put_off:
            record = await self._store.find(sandbox_id)
            if record is not None and record.state is not SandboxState.ENDED:
                self._quota.release(sandbox_id)  # taken again by what follows, if it lives
                await self._settle(sandbox_id, record, node_id if sandbox_id in ids else None)
        known = {record.sandbox_id for record in running if record.node_id == node_id}
        for sandbox_id in known - ids - put_off:
            await self._ending.ended_by_itself(sandbox_id, EndReason.LOST, "its node was started again without it")
        for sandbox_id in ids - known - put_off:
            record = await self._store.find(sandbox_id)
            if record is None or record.state is SandboxState.ENDED:
                await kill(self._nodes.client(node_id), sandbox_id, EndReason.LOST, self._clock)

    async def _give_up(self, node_id: str) -> None:
        self._put_off_until.pop(node_id, None)
        for record in await self._store.in_states(_UNFINISHED):
            if record.node_id == node_id:
                await self._ending.ended_by_itself(record.sandbox_id, EndReason.LOST, f"its node {node_id!r} is gone")

    async def _alive(self) -> dict[str, set[str]]:
        """By node, of those that answer. They are asked at the same time."""
        asked = self._nodes.worth_asking()
        found = await asyncio.gather(*(self._alive_on(*one) for one in asked.items()))
        return {node_id: ids for node_id, ids in zip(asked, found, strict=True) if ids is not None}

    async def _alive_on(self, node_id: str, node: NodeClient) -> set[str] | None:
        """None: it does not answer."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                return {one.sandbox_id for one in await node.sandboxes()}
        except (NodeUnreachable, TimeoutError) as error:
            _log.error("node.unreachable", node=node_id, error=str(error))
            return None

    async def _settle(self, sandbox_id: str, record: SandboxRecord | None, node_id: str | None) -> None:
        state = record.state if record is not None else None
        verdict = decide(state, node_id is not None, record.end_reason if record is not None else None)
        if verdict.kill and node_id is not None:
            reason = verdict.reason or EndReason.LOST
            try:
                await kill(self._nodes.client(node_id), sandbox_id, reason, self._clock)
            except PlatformError:
                # A start does not fail for one sandbox that will not end.
                team, limits = (record.team_id, record.limits) if record else ("", Limits())
                self._quota.take(sandbox_id, team, node_id, limits, beyond_quota=True)
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
            self._quota.take(sandbox_id, record.team_id, record.node_id, record.limits, beyond_quota=True)
        if verdict.state is SandboxState.RUNNING:
            self._expiry.set(sandbox_id, record.end_at)
