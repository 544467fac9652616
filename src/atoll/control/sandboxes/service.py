"""What the REST handlers call: typed in the model's words, knowing neither HTTP nor how a sandbox runs.

SandboxService carries the lifecycle: every transition is in the store before it is begun and again when it is done.
In memory it holds only what it can rebuild from the store: deadlines, and who has how many sandboxes (the quota).
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from atoll.control.access.auth import Caller
from atoll.control.access.keys import KeyService
from atoll.control.access.teams import ENDED_ROWS_KEPT, TeamService
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.events.webhooks import EventService
from atoll.control.nodes.placement import NodeLoad, choose_node
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.listing import ListQuery, Page, select_page
from atoll.control.sandboxes.orders import TIER_KEY, CreateOrder, Policy, check_order, check_timeout
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.recovery import decide
from atoll.control.sandboxes.sizing import limits_for
from atoll.control.store import Idempotency, Store
from atoll.control.telemetry.log_query import LogQuery, select
from atoll.control.telemetry.logbook import Logbook
from atoll.control.telemetry.metering import Meter
from atoll.control.telemetry.readings import ReadingFiles, Series
from atoll.control.templates.catalog import TemplateService
from atoll.model.errors import (
    AtollError,
    Conflict,
    CreateFailed,
    NodeUnreachable,
    PlatformError,
    SandboxGone,
    SandboxNotFound,
)
from atoll.model.events import EventType
from atoll.model.logs import LogEntry
from atoll.model.network import NetworkConnection, NetworkPolicy
from atoll.model.sandbox import (
    SANDBOX_ID,
    EndReason,
    Limits,
    OomKill,
    SandboxRecord,
    SandboxSpec,
    SandboxState,
    SandboxStats,
)
from atoll.model.seams import NodeClient
from atoll.model.template import Template

__all__ = ["Policy", "SandboxService", "Services", "TemplateService"]

VISIBLE = (SandboxState.RUNNING, SandboxState.PAUSED)
"""The states in which the API shows a sandbox. One that is being made or ended is not there for a caller."""

KILL_ATTEMPTS = 3
KILL_PAUSE_S = 1.0
RETRY_S = 30.0
"""Between attempts at an end that the machine, not the caller, stands in the way of."""
EVENTS_KEPT = 100_000
_SWEEP_EVERY_S = 3600.0

_log = structlog.get_logger("atoll.control")


class SandboxService:
    """The life of sandboxes; also NodeEvents, for what happens to them unasked."""

    def __init__(
        self,
        *,
        store: Store,
        nodes: Sequence[NodeClient],
        templates: TemplateService,
        policy: Policy,
        clock: Clock,
        background: Background,
        journal: Journal,
        logbook: Logbook,
        readings: ReadingFiles,
    ) -> None:
        self.policy = policy
        self.clock = clock
        self._store = store
        self._nodes = {node.node_id: node for node in nodes}
        self._background = background
        self._templates = templates
        self._expiry = Expiry(clock, self._on_due)
        self._quota = SandboxQuota(policy.max_sandboxes, policy.team, policy.node)
        self._journal = journal
        self._logbook = logbook
        self._meter = Meter(clock, self._quota.all, self._read_stats, readings)
        self._unfinished: dict[str, EndReason] = {}
        self._something_unfinished = asyncio.Event()
        self._network_turn = asyncio.Lock()
        self._ending: dict[str, asyncio.Future[bool]] = {}
        self._in_flight: dict[tuple[str, str], tuple[str, asyncio.Future[SandboxRecord]]] = {}

    # Create

    async def create(self, caller: Caller, order: CreateOrder) -> SandboxRecord:
        """Makes a sandbox; returns when its guest answers.

        Cancelled, it makes none, or ends the one that it had begun; but not where an idempotency key can find it again.

        Raises InvalidRequest, TemplateNotFound, TemplateNotReady, BuildFailed, QuotaExceeded, CreateFailed,
        BackendUnavailable; Conflict for an idempotency key that was used for something else or for a sandbox that has
        ended.
        """
        check_order(order, self.policy)
        await self._templates.prepare(order.template, self.policy.template_wait_s)
        if order.idempotency_key is None:
            return await self._make(caller, order)
        return await self._make_once(caller, order, order.idempotency_key)

    async def _make_once(self, caller: Caller, order: CreateOrder, key: str) -> SandboxRecord:
        place = (caller.team_id, key)
        if place in self._in_flight:
            digest, flight = self._in_flight[place]
            _check_same_request(key, digest, order)
        else:
            flight = self._background.begin(self._make_or_find(caller, order, key))
            self._in_flight[place] = (order.request_digest, flight)
            flight.add_done_callback(lambda _: self._in_flight.pop(place, None))
        # A retry may want it even if this request is given up, so it is never ended for that.
        return await asyncio.shield(flight)

    async def _make_or_find(self, caller: Caller, order: CreateOrder, key: str) -> SandboxRecord:
        earlier = await self._store.find_by_idempotency_key(caller.team_id, key)
        if earlier is None:
            return await self._make(caller, order)
        record, digest = earlier
        _check_same_request(key, digest, order)
        if record.state not in VISIBLE:
            raise Conflict(f"the idempotency key {key!r} made sandbox {record.sandbox_id!r}, which has ended")
        return record

    async def _make(self, caller: Caller, order: CreateOrder) -> SandboxRecord:
        template = await self._templates.find(order.template)
        limits = limits_for(template.limits, order.metadata, self.policy.maximum)
        node = self._nodes[choose_node(self._loads(template, limits))]
        record = self._new_record(caller, order, template, node.node_id, limits)
        self._quota.take(record.sandbox_id, record.team_id, record.node_id, limits)
        making = self._background.begin(self._begin(record, order, template, node))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            self._background.begin(self._end_unwanted(record.sandbox_id, making))
            raise

    async def _begin(
        self, record: SandboxRecord, order: CreateOrder, template: Template, node: NodeClient
    ) -> SandboxRecord:
        key = order.idempotency_key
        began = time.perf_counter()
        try:
            await self._store.add(record, Idempotency(key, order.request_digest) if key is not None else None)
        except BaseException:
            self._quota.release(record.sandbox_id)
            raise
        added = time.perf_counter()
        try:
            made = await node.create(_spec(record, order, template))
            ready = time.perf_counter()
            if not await self._store.running(record.sandbox_id, made.tier):
                raise CreateFailed(f"sandbox {record.sandbox_id!r} ended while it was being made")
        except BaseException as error:
            await self._undo(record, node, error)
            raise
        self._expiry.set(record.sandbox_id, record.end_at)
        self._journal.note(EventType.CREATED, record.sandbox_id)
        steps = {
            "add": (added - began) * 1000,
            "node": (ready - added) * 1000,
            "running": (time.perf_counter() - ready) * 1000,
            **{f"node_{name}": value for name, value in made.steps_ms.items()},
        }
        _log.info(
            "sandbox.created",
            sandbox_id=record.sandbox_id,
            template=record.template_id,
            tier=made.tier,
            **{f"{name}_ms": round(value, 2) for name, value in steps.items()},
        )
        return replace(record, state=SandboxState.RUNNING, tier=made.tier)

    async def _undo(self, record: SandboxRecord, node: NodeClient, error: BaseException) -> None:
        _log.error("sandbox.create_failed", sandbox_id=record.sandbox_id, error=str(error))
        try:
            await node.kill(record.sandbox_id, EndReason.CREATE_FAILED)
            await self._store.end(record.sandbox_id, EndReason.CREATE_FAILED, self.clock.now(), free_key=True)
        except Exception:
            _log.exception("sandbox.undo_failed", sandbox_id=record.sandbox_id)  # the next start settles it
        self._quota.release(record.sandbox_id)

    async def abandon(self, sandbox_id: str) -> None:
        """Ends one whose maker never got to know of it."""
        await self._end(sandbox_id, EndReason.KILLED)

    async def _end_unwanted(self, sandbox_id: str, making: asyncio.Future[SandboxRecord]) -> None:
        await asyncio.wait([making])
        if making.exception() is None:
            await self.abandon(sandbox_id)

    def _loads(self, template: Template, limits: Limits) -> list[NodeLoad]:
        holders, quota = self._templates.holders(template.template_id), self._quota
        return [NodeLoad(one, one in holders, quota.on_node(one), quota.node_lacks(one, limits)) for one in self._nodes]

    def _new_record(
        self, caller: Caller, order: CreateOrder, template: Template, node_id: str, limits: Limits
    ) -> SandboxRecord:
        now = self.clock.now()
        return SandboxRecord(
            sandbox_id=new_sandbox_id(),
            team_id=caller.team_id,
            template_id=template.template_id,
            # The name that the caller knows it by: our template ids are names themselves.
            template_alias=order.template if order.template in template.names else template.template_id,
            node_id=node_id,
            tier="",
            state=SandboxState.CREATING,
            started_at=now,
            end_at=now + timedelta(seconds=order.timeout_s),
            limits=limits,
            metadata=order.metadata,
            env_vars=order.env_vars,
            envd_access_token=secrets.token_hex(32) if order.secure else None,
            traffic_access_token=None if order.public_traffic else secrets.token_hex(32),
            network=order.network,
        )

    # Look

    async def get(self, caller: Caller, sandbox_id: str) -> SandboxRecord:
        """Raises SandboxNotFound: unknown, another team's, or ended."""
        plain = plain_id(sandbox_id)
        record = await self._store.find(plain) if plain is not None else None
        if record is None or record.team_id != caller.team_id or record.state not in VISIBLE:
            raise SandboxNotFound(sandbox_id[:100])
        return record

    async def page(self, caller: Caller, query: ListQuery) -> Page:
        """One page of the team's sandboxes."""
        return select_page(await self._store.in_states(VISIBLE, caller.team_id), query)

    async def metrics(self, caller: Caller, sandbox_id: str) -> tuple[SandboxRecord, Series]:
        """Readings since it began, the last one of now. Raises SandboxNotFound."""
        record = await self.get(caller, sandbox_id)
        try:
            return record, await self._meter.history(record.sandbox_id)
        except SandboxGone as error:
            raise SandboxNotFound(record.sandbox_id) from error

    async def _read_stats(self, sandbox_id: str) -> SandboxStats:
        node_id = self._quota.node_of(sandbox_id)
        if node_id is None:
            raise SandboxGone(sandbox_id)
        return await self._nodes[node_id].stats(sandbox_id)

    async def logs(self, caller: Caller, sandbox_id: str, query: LogQuery) -> list[LogEntry]:
        """Of a sandbox that runs, up to now; of one that has ended, as long as it is remembered.

        Raises SandboxNotFound.
        """
        plain = plain_id(sandbox_id)
        record = await self._store.find(plain) if plain is not None else None
        if record is None or record.team_id != caller.team_id or record.state is SandboxState.CREATING:
            raise SandboxNotFound(sandbox_id[:100])
        if record.state in VISIBLE:
            await self._nodes[record.node_id].flush_logs(record.sandbox_id)
        return select(await self._logbook.read(record.sandbox_id), query)

    def unenforced(self, record: SandboxRecord) -> Sequence[str]:
        """The limits that it does not keep, where its node or tier cannot."""
        node = self._nodes.get(record.node_id)
        return node.unenforced(record.tier) if node is not None else ()

    async def sandbox_out_of_memory(self, sandbox_id: str, victim: OomKill) -> None:
        """NodeEvents."""
        memory_mb = None if victim.memory_bytes is None else victim.memory_bytes >> 20
        process = {"name": victim.name, "pid": victim.pid, "memory_mb": memory_mb}
        self._journal.note(EventType.OUT_OF_MEMORY, sandbox_id, process=process, others=victim.others)

    async def sandbox_logged(self, sandbox_id: str, entries: Sequence[LogEntry]) -> None:
        """NodeEvents."""
        self._logbook.append(sandbox_id, entries)

    # Network

    async def set_network(self, caller: Caller, sandbox_id: str, network: NetworkPolicy) -> None:
        """Replaces what it may reach, at once. Raises SandboxNotFound, NotOffered."""
        async with self._network_turn:  # two at once must not leave one in the store and the other in force
            record = await self.get(caller, sandbox_id)
            # Written first: a restart in between must not bring the older, perhaps wider, policy back.
            if not await self._store.set_network(record.sandbox_id, network):
                raise SandboxNotFound(record.sandbox_id)
            try:
                await self._nodes[record.node_id].update_network(record.sandbox_id, network)
            except SandboxGone as error:
                raise SandboxNotFound(record.sandbox_id) from error
            except AtollError:
                await self._store.set_network(record.sandbox_id, record.network)
                raise

    async def connections(self, caller: Caller, sandbox_id: str) -> Sequence[NetworkConnection]:
        """What left it or tried to, oldest first. Raises SandboxNotFound."""
        record = await self.get(caller, sandbox_id)
        try:
            return await self._nodes[record.node_id].connections(record.sandbox_id)
        except SandboxGone as error:
            raise SandboxNotFound(record.sandbox_id) from error

    # Time

    async def set_timeout(self, caller: Caller, sandbox_id: str, timeout_s: int) -> None:
        """It ends that many seconds from now. Raises InvalidRequest, SandboxNotFound."""
        check_timeout(timeout_s, self.policy)
        record = await self.get(caller, sandbox_id)
        await self._move_end(replace(record, end_at=self.clock.now() + timedelta(seconds=timeout_s)))

    async def prolong(self, caller: Caller, sandbox_id: str, timeout_s: int) -> SandboxRecord:
        """It ends no sooner than that many seconds from now; never sooner than before.

        Raises InvalidRequest, SandboxNotFound.
        """
        check_timeout(timeout_s, self.policy)
        record = await self.get(caller, sandbox_id)
        wanted = self.clock.now() + timedelta(seconds=timeout_s)
        if wanted <= record.end_at:
            return record
        record = replace(record, end_at=wanted)
        await self._move_end(record)
        return record

    async def _move_end(self, record: SandboxRecord) -> None:
        if not await self._store.set_end_at(record.sandbox_id, record.end_at):
            raise SandboxNotFound(record.sandbox_id)
        self._expiry.set(record.sandbox_id, record.end_at)
        self._journal.note(EventType.UPDATED, record.sandbox_id, set_timeout=record.end_at.isoformat())

    # End

    async def kill(self, caller: Caller, sandbox_id: str) -> None:
        """Returns when it and all it had are gone. Raises SandboxNotFound; PlatformError if it could not be ended."""
        record = await self.get(caller, sandbox_id)
        while not await self._end(record.sandbox_id, EndReason.KILLED):
            # It has ended meanwhile (then this raises), or what ended it was a timeout that was put off just then.
            await self.get(caller, sandbox_id)

    async def end_all(self) -> None:
        """Ends every sandbox, for a server that keeps none."""
        ends = (self._end(sandbox_id, EndReason.KILLED) for sandbox_id in self._quota.all())
        for outcome in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(outcome, BaseException):
                _log.error("sandbox.not_ended", error=str(outcome))

    async def sandbox_ended(self, sandbox_id: str, reason: EndReason, detail: str) -> None:
        """NodeEvents: its guest died."""
        if await self._store.end(sandbox_id, reason, self.clock.now()):
            _log.warning("sandbox.ended", sandbox_id=sandbox_id, reason=reason.value, detail=detail)
            self._journal.note(EventType.KILLED, sandbox_id)
        self._expiry.forget(sandbox_id)
        self._release(sandbox_id)

    def _on_due(self, sandbox_id: str) -> None:
        self._background.begin(self._expire(sandbox_id))

    async def _expire(self, sandbox_id: str) -> None:
        try:
            await self._end(sandbox_id, EndReason.TIMEOUT)
        except Exception:
            _log.exception("sandbox.expiry_failed", sandbox_id=sandbox_id)
            if sandbox_id not in self._unfinished:
                # Not even begun: the store failed. It must not run for ever for that.
                self._expiry.set(sandbox_id, self.clock.now() + timedelta(seconds=RETRY_S))

    async def _end(self, sandbox_id: str, reason: EndReason) -> bool:
        """False: it was ended already, or its end was put off meanwhile. Those who ask twice wait for the one end."""
        if sandbox_id not in self._ending:
            ending = self._background.begin(self._end_now(sandbox_id, reason))
            self._ending[sandbox_id] = ending
            ending.add_done_callback(lambda _: self._ending.pop(sandbox_id, None))
        return await asyncio.shield(self._ending[sandbox_id])

    async def _end_now(self, sandbox_id: str, reason: EndReason) -> bool:
        due_by = self.clock.now() if reason is EndReason.TIMEOUT else None
        if not await self._store.begin_kill(sandbox_id, reason, due_by):
            return False
        self._expiry.forget(sandbox_id)
        try:
            await self._finish(sandbox_id, reason)
        except BaseException:
            self._finish_later(sandbox_id, reason)
            raise
        return True

    async def _finish(self, sandbox_id: str, reason: EndReason) -> None:
        """Carries out a kill that the store has written down."""
        node_id = self._quota.node_of(sandbox_id)
        if node_id is not None:
            await self._kill_on_node(node_id, sandbox_id, reason)
        if await self._store.end(sandbox_id, reason, self.clock.now()):
            self._journal.note(EventType.KILLED, sandbox_id)
        self._release(sandbox_id)
        _log.info("sandbox.ended", sandbox_id=sandbox_id, reason=reason.value)

    def _release(self, sandbox_id: str) -> None:
        """It is gone: its place in the quota is free, and nothing of it stays in memory."""
        self._quota.release(sandbox_id)
        self._meter.forget(sandbox_id)
        self._logbook.close(sandbox_id)

    def _finish_later(self, sandbox_id: str, reason: EndReason) -> None:
        self._unfinished[sandbox_id] = reason
        self._something_unfinished.set()

    async def _finish_what_failed(self) -> None:
        while True:
            await self._something_unfinished.wait()
            await self.clock.sleep(RETRY_S)
            for sandbox_id, reason in list(self._unfinished.items()):
                try:
                    await self._finish(sandbox_id, reason)
                except Exception:
                    _log.exception("sandbox.still_not_ended", sandbox_id=sandbox_id)
                else:
                    del self._unfinished[sandbox_id]
            if not self._unfinished:
                self._something_unfinished.clear()

    async def _kill_on_node(self, node_id: str, sandbox_id: str, reason: EndReason) -> None:
        """Raises PlatformError after KILL_ATTEMPTS."""
        for attempt in range(1, KILL_ATTEMPTS + 1):
            try:
                await self._nodes[node_id].kill(sandbox_id, reason)
                return
            except AtollError as error:
                _log.error("sandbox.kill_failed", sandbox_id=sandbox_id, attempt=attempt, error=str(error))
                if attempt == KILL_ATTEMPTS:
                    raise PlatformError(f"sandbox {sandbox_id!r} could not be ended") from error
            await self.clock.sleep(KILL_PAUSE_S)

    # Start

    async def recover(self) -> None:
        """Settles what an earlier server left: see `recovery`. Before the first request."""
        found = await self._alive()
        alive = {sandbox_id: node_id for node_id, ids in found.items() for sandbox_id in ids}
        silent = self._nodes.keys() - found.keys()
        unfinished = [state for state in SandboxState if state is not SandboxState.ENDED]
        records = {record.sandbox_id: record for record in await self._store.in_states(unfinished)}
        for sandbox_id in records.keys() | alive.keys():
            if sandbox_id in records and records[sandbox_id].node_id in silent:
                continue  # nobody can say; `node_came_back` will
            await self._settle(sandbox_id, records.get(sandbox_id), alive.get(sandbox_id))
        forgotten = await self._store.forget_ended(self.clock.now() - ENDED_ROWS_KEPT)
        _log.info("control.recovered", found=len(records), alive=len(alive), forgotten=forgotten)

    def node_came_back(self) -> None:
        """A node was started again, or its connection was lost for a while: what both know may differ."""
        self._background.begin(self._reconcile())

    async def _reconcile(self) -> None:
        """What runs nowhere has ended; what nobody knows is ended. What is being made or ended settles itself."""
        known = {record.sandbox_id: record for record in await self._store.in_states([SandboxState.RUNNING])}
        alive = await self._alive()
        for sandbox_id, record in known.items():
            if record.node_id in alive and sandbox_id not in alive[record.node_id]:
                await self.sandbox_ended(sandbox_id, EndReason.LOST, "its node was started again without it")
        for node_id, ids in alive.items():
            for sandbox_id in ids - known.keys():
                if await self._store.find(sandbox_id) is None:
                    await self._kill_on_node(node_id, sandbox_id, EndReason.LOST)

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
            try:
                await self._kill_on_node(node_id, sandbox_id, verdict.reason or EndReason.LOST)
            except PlatformError:
                # A start does not fail for one sandbox that will not end.
                team, limits = (record.team_id, record.limits) if record else ("", Limits())
                self._quota.take(sandbox_id, team, node_id, limits, beyond_quota=True)
                self._finish_later(sandbox_id, verdict.reason or EndReason.LOST)
                return
        if record is None:
            return
        if verdict.state is not state:
            _log.warning("sandbox.settled", sandbox_id=sandbox_id, found=record.state.value, now=verdict.state.value)
            if verdict.reason is not None:
                free_key = verdict.reason is EndReason.CREATE_FAILED
                await self._store.end(sandbox_id, verdict.reason, self.clock.now(), free_key=free_key)
                if not free_key:
                    self._journal.note(EventType.KILLED, sandbox_id)
            else:
                await self._store.transition(sandbox_id, verdict.state)
        if verdict.state in VISIBLE:
            self._quota.take(sandbox_id, record.team_id, record.node_id, record.limits, beyond_quota=True)
        if verdict.state is SandboxState.RUNNING:
            self._expiry.set(sandbox_id, record.end_at)

    def housekeeping(self) -> list[Coroutine[None, None, None]]:
        """Work that runs as long as the control plane does."""
        return [self._expiry.run(), self._finish_what_failed(), self._sweep(), self._meter.run()]

    async def _sweep(self) -> None:
        while True:
            await self.clock.sleep(_SWEEP_EVERY_S)
            try:
                before = self.clock.now() - ENDED_ROWS_KEPT
                await self._store.forget_ended(before)
                await self._store.events.forget(before, EVENTS_KEPT)
                await self._logbook.forget(before)
            except Exception:
                _log.exception("control.sweep_failed")


@dataclass(frozen=True, slots=True)
class Services:
    """What the handlers call."""

    sandboxes: SandboxService
    templates: TemplateService
    teams: TeamService
    keys: KeyService
    events: EventService


def new_sandbox_id() -> str:
    """E2B's form: an `i` and 19 lower-case letters and digits (95 random bits)."""
    return "i" + base64.b32encode(secrets.token_bytes(12)).decode().lower()[:19]


def plain_id(text: str) -> str | None:
    """The id in what a client sent; old SDKs append `-<clientID>`. None: it cannot be an id."""
    plain = text.partition("-")[0]
    return plain if SANDBOX_ID.fullmatch(plain) else None


def _check_same_request(key: str, digest: str, order: CreateOrder) -> None:
    if digest != order.request_digest:
        raise Conflict(f"the idempotency key {key!r} was used for a different request", hint="take a new key")


def _spec(record: SandboxRecord, order: CreateOrder, template: Template) -> SandboxSpec:
    return SandboxSpec(
        sandbox_id=record.sandbox_id,
        template_id=record.template_id,
        limits=record.limits,
        env_vars={**template.env_vars, **order.env_vars},
        access_token=record.envd_access_token,
        default_user=template.default_user,
        default_workdir=template.default_workdir,
        start_cmd=template.start_cmd,
        interpreter=template.interpreter,
        tier=order.metadata.get(TIER_KEY) or None,
        traffic_access_token=record.traffic_access_token,
        mask_request_host=order.mask_request_host,
        network=record.network,
    )
