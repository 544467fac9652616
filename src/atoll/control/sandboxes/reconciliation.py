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
from atoll.control.sandboxes.pausing import SandboxPausing
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.recovery import AtNode, decide
from atoll.control.sandboxes.sleeping import SleepingRoutes
from atoll.control.store import Store
from atoll.model.errors import NodeUnreachable, PlatformError
from atoll.model.events import EventType
from atoll.model.sandbox import EndReason, Limits, SandboxRecord, SandboxState
from atoll.model.seams import NodeClient, NodePause, NodeSandbox

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
        pausing: SandboxPausing,
        sleeping: SleepingRoutes,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._clock = clock
        self._background = background
        self._quota = quota
        self._expiry = expiry
        self._journal = journal
        self._ending = ending
        self._pausing = pausing
        self._sleeping = sleeping

    async def recover(self) -> None:
        """Settles what an earlier server left: see `recovery`. Before the first request."""
        there = await self._there()
        silent = self._nodes.keys() - there.keys()
        by_id = {one.sandbox_id: (node_id, one) for node_id, found in there.items() for one in found.values()}
        unfinished = [state for state in SandboxState if state is not SandboxState.ENDED]
        records = {record.sandbox_id: record for record in await self._store.in_states(unfinished)}
        for sandbox_id in records.keys() | by_id.keys():
            if sandbox_id in records and records[sandbox_id].node_id in silent:
                continue  # only its node knows; `node_came_back` settles it
            node_id, one = by_id.get(sandbox_id, (None, None))
            await self._settle(sandbox_id, records.get(sandbox_id), node_id, one)
        forgotten = await self._store.forget_ended(self._clock.now() - ENDED_ROWS_KEPT)
        _log.info("control.recovered", found=len(records), alive=len(by_id), forgotten=forgotten)

    def node_came_back(self) -> None:
        """A node was started again, or its connection was lost for a while: what both know may differ."""
        self._background.begin(self._reconcile())

    async def _reconcile(self) -> None:
        """What no node has has ended; what the store lacks is ended. What is being made or ended settles itself."""
        known = {record.sandbox_id: record for record in await self._store.in_states(VISIBLE)}
        there = await self._there()
        for sandbox_id, record in known.items():
            if record.node_id in there:
                await self._agree(record, there[record.node_id].get(sandbox_id))
        for node_id, found in there.items():
            for sandbox_id in found.keys() - known.keys():
                if await self._store.find(sandbox_id) is None:
                    await kill(self._nodes[node_id], sandbox_id, EndReason.LOST, self._clock)

    async def _agree(self, record: SandboxRecord, one: NodeSandbox | None) -> None:
        """After a node was away: what was under way is carried on with by whoever began it, if that is still there."""
        sandbox_id = record.sandbox_id
        if one is None:
            detail = "its node was started again without it"
            await self._ending.ended_by_itself(sandbox_id, EndReason.LOST, detail)
        elif record.state in (SandboxState.PAUSING, SandboxState.RESUMING):
            self._pausing.finish(record)
        elif record.state is SandboxState.PAUSED and one.paused is not None:
            await self._note_kept(record, one.paused)

    async def _there(self) -> dict[str, dict[str, NodeSandbox]]:
        """By node, of those that answer: what it has, by id."""
        there: dict[str, dict[str, NodeSandbox]] = {}
        for node_id, node in self._nodes.items():
            try:
                there[node_id] = {one.sandbox_id: one for one in await node.sandboxes()}
            except NodeUnreachable as error:
                _log.error("node.unreachable", node=node_id, error=str(error))
        return there

    async def _settle(
        self, sandbox_id: str, record: SandboxRecord | None, node_id: str | None, one: NodeSandbox | None
    ) -> None:
        state = record.state if record is not None else None
        verdict = decide(state, _at_node(one), record.end_reason if record is not None else None)
        if verdict.kill and node_id is not None:
            reason = verdict.reason or EndReason.LOST
            try:
                await kill(self._nodes[node_id], sandbox_id, reason, self._clock)
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
                await self._store.set_state(sandbox_id, verdict.state)
        if verdict.state not in VISIBLE:
            return
        self._quota.take(sandbox_id, record.team_id, record.node_id, record.limits, beyond_quota=True)
        if verdict.state is SandboxState.RUNNING:
            self._expiry.set(sandbox_id, record.end_at)
        elif verdict.state is SandboxState.PAUSED and one is not None and one.paused is not None:
            await self._note_kept(record, one.paused)
        else:
            self._pausing.finish(record)

    async def _note_kept(self, record: SandboxRecord, paused: NodePause) -> None:
        """Its machine may have been restarted, and its memory be lost with that: the node says what is left."""
        if paused.mode is not record.pause_mode:
            _log.warning("sandbox.memory_lost", sandbox_id=record.sandbox_id, now=paused.mode.value)
            await self._store.set_pause_mode(record.sandbox_id, paused.mode)
        self._sleeping.remove(record.sandbox_id)
        self._pausing.note_paused(record, paused)


def _at_node(one: NodeSandbox | None) -> AtNode:
    if one is None:
        return AtNode.NOTHING
    return AtNode.PAUSED if one.paused is not None else AtNode.RUNNING
