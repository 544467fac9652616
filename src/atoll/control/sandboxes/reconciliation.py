"""Store and nodes brought into agreement: at start (`recovery` decides), and after a node was away."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

import structlog

from atoll.control.access.teams import ENDED_ROWS_KEPT
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.nodes.kill import kill
from atoll.control.nodes.leases import NodeLeases
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.ending import SandboxEnding
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.failover import SandboxFailover
from atoll.control.sandboxes.lookup import VISIBLE
from atoll.control.sandboxes.orders import SPREAD_KEY
from atoll.control.sandboxes.pausing import SandboxPausing
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.recovery import AtNode, decide
from atoll.control.sandboxes.sleeping import SleepingRoutes
from atoll.control.sandboxes.warm import WarmPool
from atoll.control.state_mark import HINT
from atoll.control.store import Store
from atoll.model.errors import NodeUnreachable, PlatformError, StateLost
from atoll.model.events import EventType
from atoll.model.sandbox import EndReason, Limits, SandboxRecord, SandboxState
from atoll.model.seams import NodeClient, NodePause, NodeSandbox

_UNFINISHED = [state for state in SandboxState if state is not SandboxState.ENDED]
_ANSWER_WITHIN_S = 10.0
"""Longer than a node is waited for that is being started again."""

_log = structlog.get_logger("atoll.control")

_AGAIN_S = 1.0


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
        pausing: SandboxPausing,
        sleeping: SleepingRoutes,
        warm: WarmPool,
        failover: SandboxFailover,
        leases: NodeLeases,
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
        self._warm = warm
        self._failover = failover
        self._leases = leases
        self._put_off_until: defaultdict[str, set[str]] = defaultdict(set)
        """Node → what is settled when it is back."""
        self._compared: Collection[str] = ()

    async def recover(self, *, trusted: bool = True) -> None:
        """Settles what an earlier server left: see `recovery`. Before the first request.

        `trusted`: the store is known to be the one that was used before. What it lacks then no answer has named.
        Else that says something of the store, and StateLost is raised with nothing settled.
        """
        found = await self._there()
        self._compared = found.keys()
        everything = [(node_id, one) for node_id, some in found.items() for one in some.values()]
        ids = {one.sandbox_id for _, one in everything}
        strangers = [] if trusted else sorted(ids - await self._known(ids))
        if strangers:
            raise StateLost(
                f"the database does not know {len(strangers)} of {len(ids)} sandboxes that are here "
                f"({', '.join(strangers[:3])}{', …' if len(strangers) > 3 else ''}); nothing was touched",
                hint=HINT,
            )
        records = {record.sandbox_id: record for record in await self._store.in_states(_UNFINISHED)}
        there: dict[str, tuple[str, NodeSandbox]] = {}
        for node_id, one in everything:
            if _is_superseded(records.get(one.sandbox_id), node_id, one):
                await self._end_superseded(node_id, one.sandbox_id)
            else:
                there[one.sandbox_id] = node_id, one
        for sandbox_id in records.keys() | there.keys():
            record = records.get(sandbox_id)
            if record is not None and record.node_id not in found:
                self._put_off(record)
            else:
                await self._settle(sandbox_id, record, *there.get(sandbox_id, (None, None)))
        forgotten = await self._store.forget_ended(self._clock.now() - ENDED_ROWS_KEPT)
        _log.info("control.recovered", found=len(records), alive=len(there), forgotten=forgotten)

    async def _known(self, sandbox_ids: Collection[str]) -> set[str]:
        """Those that the store has a row of, ended ones too."""
        return {one for some in batched(sandbox_ids) for one in await self._store.find_all(some)}

    def _put_off(self, record: SandboxRecord) -> None:
        """Only its node knows, and it does not answer: what it says when it is back settles it."""
        self._nodes.expect(record.node_id)
        self._put_off_until[record.node_id].add(record.sandbox_id)
        self._hold(record)
        if record.state is SandboxState.RUNNING:
            self._expiry.set(record.sandbox_id, record.end_at)

    def _hold(self, record: SandboxRecord) -> None:
        group = record.metadata.get(SPREAD_KEY, "")
        self._quota.take(
            record.sandbox_id, record.team_id, record.node_id, record.limits, group=group, beyond_quota=True
        )

    def catch_up(self) -> None:
        """After `recover`: nodes that have registered since it asked. Later ones come by `node_returned`."""
        for node_id in self._compared:
            self._leases.grant(node_id, self._leases.suspend(node_id))
        for node_id in self._nodes.worth_asking().keys() - self._compared:
            self.node_returned(node_id)

    def node_returned(self, node_id: str) -> None:
        """It was started again, or was silent for a while: what both know may differ."""
        self._warm.node_returned(node_id)
        self._background.begin(self._agree_with(node_id, self._leases.suspend(node_id)))

    def node_gone(self, node_id: str) -> None:
        """It was silent for so long that its sandboxes count as lost."""
        self._warm.node_returned(node_id)
        self._background.begin(self._give_up(node_id))

    async def _agree_with(self, node_id: str, turn: int) -> None:
        """Until both know the same; only then what it runs may go on."""
        while not self._nodes.is_silent(node_id):
            try:
                if await self._reconcile(node_id):
                    self._leases.grant(node_id, turn)
                    return
            except Exception:
                _log.exception("node.not_reconciled", node=node_id)
            await asyncio.sleep(_AGAIN_S)

    async def _reconcile(self, node_id: str) -> bool:
        """What it has no more has ended; what the store lacks is ended. What is being made or ended settles itself.

        False: it does not answer. Raises AtollError.
        """
        known = {one.sandbox_id: one for one in await self._store.in_states(VISIBLE) if one.node_id == node_id}
        found = await self._there_on(node_id, self._nodes.client(node_id))
        if found is None:
            return False
        for name in await self._superseded(node_id, found):
            await self._end_superseded(node_id, name)
            del found[name]
        put_off = self._put_off_until.pop(node_id, set())
        for sandbox_id in put_off:
            record = await self._store.find(sandbox_id)
            if record is not None and record.state is not SandboxState.ENDED:
                self._quota.release(sandbox_id)  # taken again by what follows, if it lives
                await self._settle(sandbox_id, record, node_id, found.get(sandbox_id))
        for sandbox_id in known.keys() - put_off:
            await self._agree(known[sandbox_id], found.get(sandbox_id))
        for sandbox_id in found.keys() - known.keys() - put_off:
            record = await self._store.find(sandbox_id)
            is_being_made = record is None and self._quota.node_of(sandbox_id) is not None
            if (record is None and not is_being_made) or (record is not None and record.state is SandboxState.ENDED):
                await kill(self._nodes.client(node_id), sandbox_id, EndReason.LOST, self._clock)
        return True

    async def _superseded(self, node_id: str, found: Mapping[str, NodeSandbox]) -> list[str]:
        """Those of what a node has that only others may run."""
        records: dict[str, SandboxRecord] = {}
        for some in batched(found.keys()):
            records |= await self._store.find_all(some)
        return [name for name, one in found.items() if _is_superseded(records.get(name), node_id, one)]

    async def _end_superseded(self, node_id: str, sandbox_id: str) -> None:
        _log.warning("sandbox.superseded", sandbox_id=sandbox_id, node=node_id)
        await self._nodes.client(node_id).kill(sandbox_id, EndReason.LOST)

    async def _agree(self, record: SandboxRecord, one: NodeSandbox | None) -> None:
        """After a node was away: what was under way is carried on with, by the task that began it if there is one."""
        if one is None and self._failover.wants_restart(record):
            self._failover.restart_soon(record)
        elif one is None and await self._failover.keep_if_shared(record):
            pass
        elif one is None:
            detail = "its node was started again without it"
            await self._ending.ended_by_itself(record.sandbox_id, EndReason.LOST, detail)
        elif record.state in (SandboxState.PAUSING, SandboxState.RESUMING):
            self._pausing.finish(record)
        elif record.state is SandboxState.RUNNING:
            self._failover.found(record)
        elif record.state is SandboxState.PAUSED and one.paused is not None:
            await self._note_kept(record, one.paused)

    async def _give_up(self, node_id: str) -> None:
        self._put_off_until.pop(node_id, None)
        for record in await self._store.in_states(_UNFINISHED):
            if record.node_id != node_id or not await self._is_still_there(record):
                continue
            if not await self._failover.keep_if_shared(record):
                await self._ending.ended_by_itself(record.sandbox_id, EndReason.LOST, f"its node {node_id!r} is gone")

    async def _is_still_there(self, record: SandboxRecord) -> bool:
        """It was not moved to another node meanwhile."""
        now = await self._store.find(record.sandbox_id)
        return now is not None and now.generation == record.generation

    async def _there(self) -> dict[str, dict[str, NodeSandbox]]:
        """By node, of those that answer: what it has, by id. They are asked at the same time."""
        asked = self._nodes.worth_asking()
        found = await asyncio.gather(*(self._there_on(*one) for one in asked.items()))
        return {node_id: some for node_id, some in zip(asked, found, strict=True) if some is not None}

    async def _there_on(self, node_id: str, node: NodeClient) -> dict[str, NodeSandbox] | None:
        """None: it does not answer."""
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                return {one.sandbox_id: one for one in await node.sandboxes()}
        except (NodeUnreachable, TimeoutError) as error:
            _log.error("node.unreachable", node=node_id, error=str(error))
            return None

    async def _settle(
        self, sandbox_id: str, record: SandboxRecord | None, node_id: str | None, one: NodeSandbox | None
    ) -> None:
        state = record.state if record is not None else None
        if record is not None and one is None and self._failover.wants_restart(record):
            self._quota.take(sandbox_id, record.team_id, record.node_id, record.limits, beyond_quota=True)
            self._failover.restart_soon(record)
            return
        if record is not None and one is None and await self._failover.keep_if_shared(record):
            self._quota.take(sandbox_id, record.team_id, record.node_id, record.limits, beyond_quota=True)
            self._quota.set_aside(sandbox_id)
            return
        verdict = decide(state, _at_node(one), record.end_reason if record is not None else None)
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
                await self._store.set_state(sandbox_id, verdict.state)
        if verdict.state not in VISIBLE:
            return
        self._hold(record)
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


def _is_superseded(record: SandboxRecord | None, node_id: str, one: NodeSandbox) -> bool:
    """It was begun anew under its id since, or is to be, by what the store says."""
    return record is not None and (record.node_id != node_id or one.generation < record.generation)


def _at_node(one: NodeSandbox | None) -> AtNode:
    if one is None:
        return AtNode.NOTHING
    return AtNode.PAUSED if one.paused is not None else AtNode.RUNNING


def batched(names: Collection[str], size: int = 300) -> Iterator[list[str]]:
    """In pieces that a statement takes."""
    whole = sorted(names)
    for start in range(0, len(whole), size):
        yield whole[start : start + size]
