"""Making a sandbox: quota, template, node; the row is written while the node makes it, RUNNING before the answer.

A server that is killed in between ends what its node has made and the store does not call RUNNING.

A node that would not take it, or does not answer, is one of several: the create goes on to the next, under a new id.

A create that is cancelled makes no sandbox, unless an idempotency key can find it again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

import structlog

from atoll.control.access.auth import Caller
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.ending import SandboxEnding
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.ids import new_sandbox_id
from atoll.control.sandboxes.lookup import VISIBLE
from atoll.control.sandboxes.orders import (
    RESTART_ALWAYS,
    RESTART_KEY,
    SPREAD_KEY,
    CreateOrder,
    Policy,
    check_order,
    disk_rate,
    network_rate,
)
from atoll.control.sandboxes.placing import Placing
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.sizing import limits_for
from atoll.control.sandboxes.spec import spec_for
from atoll.control.sandboxes.warm import WarmPool, WarmSandbox, WarmUnusable
from atoll.control.secrets.service import SecretFilling
from atoll.control.store import Idempotency, Store
from atoll.control.templates.catalog import TemplateService
from atoll.control.volumes.service import VolumeService
from atoll.model.errors import AtollError, Conflict, CreateFailed, NodeUnreachable, QuotaExceeded
from atoll.model.events import EventType
from atoll.model.network import NetworkPolicy
from atoll.model.node_addresses import LOCAL
from atoll.model.sandbox import EndReason, Limits, SandboxRecord, SandboxSpec, SandboxState
from atoll.model.seams import NodeClient, NodeSandbox
from atoll.model.template import Template

ELSEWHERE_WITHIN_S = 20.0
"""How long a create goes on to other nodes: its caller waits."""
MOST_FAILURES = 2
"""Nodes on which it may fail, rather than be refused: then it is the sandbox that fails."""

_log = structlog.get_logger("atoll.control")


class SandboxCreation:
    """`create` is all; the rest undoes what is given up."""

    def __init__(
        self,
        *,
        store: Store,
        nodes: NodeRegistry,
        templates: TemplateService,
        policy: Policy,
        clock: Clock,
        background: Background,
        quota: SandboxQuota,
        expiry: Expiry,
        journal: Journal,
        ending: SandboxEnding,
        filling: SecretFilling,
        volumes: VolumeService,
        placing: Placing,
        warm: WarmPool,
        wait_until_ready: Callable[[str, Template], Awaitable[None]],
        created: Callable[[str, Mapping[str, float]], None],
    ) -> None:
        self._created = created
        self._wait_until_ready = wait_until_ready
        self._store = store
        self._nodes = nodes
        self._templates = templates
        self._policy = policy
        self._clock = clock
        self._background = background
        self._quota = quota
        self._expiry = expiry
        self._journal = journal
        self._ending = ending
        self._filling = filling
        self._volumes = volumes
        self._placing = placing
        self._warm = warm
        self._in_flight: dict[tuple[str, str], tuple[str, asyncio.Future[SandboxRecord]]] = {}

    async def create(self, caller: Caller, order: CreateOrder) -> SandboxRecord:
        """Makes a sandbox; returns when its guest answers.

        Cancelled, it makes none, or ends the one that it had begun; but not where an idempotency key can find it again.

        Raises InvalidRequest, TemplateNotFound, TemplateNotReady, BuildFailed, QuotaExceeded, CreateFailed,
        BackendUnavailable; Conflict for an idempotency key that was used for something else or for a sandbox that has
        ended.
        """
        check_order(order, self._policy)
        await self._templates.prepare(order.template, self._policy.template_wait_s)
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
        # A retry may ask for it even if this request is given up, so it is never ended for that.
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

    async def create_of(self, caller: Caller, order: CreateOrder, template: Template) -> SandboxRecord:
        """As `create`, of a template that need have no name (a fork's); `order.template` is what it is called."""
        check_order(order, self._policy)
        return await self._make(caller, order, template)

    async def _make(self, caller: Caller, order: CreateOrder, template: Template | None = None) -> SandboxRecord:
        if template is None:
            template = await self._templates.find(order.template, caller.team_id)
        limits = limits_for(template.limits, order.metadata, self._policy.maximum)
        mounts, place = await self._volumes.mounts(caller.team_id, order.volumes)
        record = replace(self._new_record(caller, order, template, limits), volumes=tuple(mounts))
        network = await self._filling.of_order(record.team_id, record.network)
        asked = _Asked(record, order, template, network, disk_rate(order.metadata, self._policy), place)
        if not asked.group and (warm := self._warm.take(template, asked.spec)) is not None:
            try:
                return await self._hand_out(asked, warm)
            except WarmUnusable as error:
                _log.warning("warm.unusable", sandbox_id=warm.spec.sandbox_id, error=str(error))
        if (kept := self._warm.kept(template, asked.spec)) is not None:
            try:
                return await self._start(replace(asked, template=kept))
            except CreateFailed as error:
                self._warm.forget_kept(template)
                _log.warning("warm.image_unusable", template=template.template_id, error=str(error))
        return await self._start(asked)

    async def _hand_out(self, asked: _Asked, warm: WarmSandbox) -> SandboxRecord:
        """Raises WarmUnusable, and as `create`."""
        record = replace(asked.renamed(warm.spec.sandbox_id).record, node_id=warm.node_id)
        if record.envd_access_token is not None:
            record = replace(record, envd_access_token=warm.spec.access_token)
        try:
            self._quota.take(record.sandbox_id, record.team_id, record.node_id, record.limits)
        except QuotaExceeded:
            self._warm.put_back(warm)
            raise
        return await self._see_through(replace(asked, record=record), is_warm=True)

    async def _start(self, asked: _Asked) -> SandboxRecord:
        refusals: dict[str, AtollError] = {}
        until = time.monotonic() + ELSEWHERE_WITHIN_S
        while True:
            asked = asked.renamed(new_sandbox_id())
            record = asked.record
            try:
                node_id = await self._node_for(asked, refusals.keys())
            except QuotaExceeded:
                if refusals:  # all that could be asked were
                    raise next(iter(refusals.values())) from None
                raise
            self._quota.take(record.sandbox_id, record.team_id, node_id, record.limits, group=asked.group)
            try:
                return await self._see_through(replace(asked, record=replace(record, node_id=node_id)), is_warm=False)
            except _NotTaken as refusal:
                if time.monotonic() < until and await self._has_made_way(asked, node_id, refusal.reason):
                    continue
                refusals[node_id] = refusal.reason
                failures = sum(isinstance(reason, CreateFailed) for reason in refusals.values())
                if failures == MOST_FAILURES or time.monotonic() > until:
                    raise refusal.reason from None
                _log.warning("sandbox.tried_elsewhere", node=node_id, error=str(refusal.reason))

    async def _node_for(self, asked: _Asked, refused: Collection[str]) -> str:
        record = asked.record
        while True:
            try:
                return self._placing.node_for(
                    asked.template,
                    record.limits,
                    asked.place,
                    team_id=record.team_id,
                    group=asked.group,
                    refused=refused,
                    gpu=asked.spec.gpu,
                )
            except QuotaExceeded:
                if refused or not await self._warm.give_way():  # room is not what a node that refused lacks
                    raise

    async def _has_made_way(self, asked: _Asked, node_id: str, reason: AtollError) -> bool:
        """Whether a warm sandbox has given back a GPU there; how many are free a node alone knows, when it is asked."""
        is_for_gpus = asked.spec.gpu is not None and isinstance(reason, QuotaExceeded)
        return is_for_gpus and await self._warm.give_gpus_way(node_id)

    async def _see_through(self, asked: _Asked, *, is_warm: bool) -> SandboxRecord:
        record = asked.record
        making = self._background.begin(self._begin(asked, is_warm=is_warm))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            self._background.begin(self._end_unused(record.sandbox_id, making))
            raise

    async def _begin(self, asked: _Asked, *, is_warm: bool) -> SandboxRecord:
        record, order, template, network = asked.record, asked.order, asked.template, asked.network
        node, key = self._nodes.client(record.node_id), order.idempotency_key
        creates, began = self._nodes.creates_of(record.node_id), time.perf_counter()
        creates.begun += 1
        adding = self._background.begin(
            self._store.add(
                record,
                Idempotency(key, order.request_digest) if key is not None else None,
                volatile=record.node_id == LOCAL and record.metadata.get(RESTART_KEY) != RESTART_ALWAYS,
            )
        )
        try:
            if not self._store.in_order:
                await adding  # what its node reports must find the row
            made = await (_assign(node, asked.spec) if is_warm else _create(node, asked.spec))
            made_at = time.perf_counter()
            await adding
            if template.ready_cmd is not None and not is_warm:
                await self._wait_until_ready(record.sandbox_id, template)
            ready = time.perf_counter()
            if not await self._store.running(record.sandbox_id, made.tier):
                raise CreateFailed(f"sandbox {record.sandbox_id!r} ended while it was being made")
            now = await self._filling.as_it_is_now(record.team_id, record.network)
            if now != network:  # a secret was changed while it was being made
                await node.update_network(record.sandbox_id, now)
        except BaseException as error:
            creates.failed += 1
            await asyncio.wait([adding])
            if isinstance(error, _NotTaken) and isinstance(error.reason, NodeUnreachable):
                await self._undo_row(record, error)
                self._background.begin(self._undo(record, node, error))  # the next node is not kept waiting by this one
            else:
                await self._undo(record, node, error)
            raise
        creates.done += 1
        self._expiry.set(record.sandbox_id, record.end_at)
        self._journal.note(EventType.CREATED, replace(record, state=SandboxState.RUNNING, tier=made.tier))
        steps = {
            "node": (made_at - began) * 1000,
            "ready": (ready - made_at) * 1000,
            "running": (time.perf_counter() - ready) * 1000,
            **{f"node_{name}": value for name, value in made.steps_ms.items()},
        }
        self._created(made.tier, steps)
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
            await self._undo_row(record, error)
        except Exception:
            _log.exception("sandbox.undo_failed", sandbox_id=record.sandbox_id)  # the next start settles it
        self._quota.release(record.sandbox_id)

    async def _undo_row(self, record: SandboxRecord, error: BaseException) -> None:
        """What its node may have made all the same is ended when both are compared: the store says ENDED."""
        try:
            await self._store.end(record.sandbox_id, EndReason.CREATE_FAILED, self._clock.now(), free_key=True)
        except Exception:
            _log.exception("sandbox.undo_failed", sandbox_id=record.sandbox_id)

    async def _end_unused(self, sandbox_id: str, making: asyncio.Future[SandboxRecord]) -> None:
        await asyncio.wait([making])
        if making.exception() is None:
            await self._ending.abandon(sandbox_id)

    def _new_record(self, caller: Caller, order: CreateOrder, template: Template, limits: Limits) -> SandboxRecord:
        """Not placed yet."""
        now = self._clock.now()
        return SandboxRecord(
            sandbox_id=new_sandbox_id(),
            team_id=caller.team_id,
            template_id=template.template_id,
            # The name that the caller knows it by: our template ids are names themselves.
            template_alias=order.template if order.template in template.names else template.template_id,
            node_id="",
            tier="",
            state=SandboxState.CREATING,
            started_at=now,
            end_at=now + timedelta(seconds=order.timeout_s),
            limits=limits,
            metadata=order.metadata,
            env_vars=order.env_vars,
            envd_access_token=secrets.token_hex(32) if order.secure else None,
            traffic_access_token=None if order.public_traffic else secrets.token_hex(32),
            network=replace(order.network, mib_s=network_rate(order.metadata, self._policy)),
            auto_pause=order.auto_pause,
            auto_pause_memory=order.auto_pause_memory,
            auto_resume=order.auto_resume,
            mask_request_host=order.mask_request_host,
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A create call and what came of it so far."""

    record: SandboxRecord
    order: CreateOrder
    template: Template
    network: NetworkPolicy
    disk_mib_s: int | None
    place: str | None = None
    """The node where its volumes are."""

    @property
    def spec(self) -> SandboxSpec:
        return spec_for(self.record, self.template, self.network, self.disk_mib_s)

    @property
    def group(self) -> str:
        """Of the team's sandboxes that are to be apart; "": of none."""
        return self.order.metadata.get(SPREAD_KEY, "")

    def renamed(self, sandbox_id: str) -> _Asked:
        """An id is used once, also where nothing came of it."""
        return replace(self, record=replace(self.record, sandbox_id=sandbox_id))


class _NotTaken(Exception):
    """Its node did not make it: another one may."""

    def __init__(self, reason: AtollError) -> None:
        super().__init__(str(reason))
        self.reason = reason


async def _create(node: NodeClient, spec: SandboxSpec) -> NodeSandbox:
    try:
        return await node.create(spec)
    except AtollError as error:
        raise _NotTaken(error) from error


async def _assign(node: NodeClient, spec: SandboxSpec) -> NodeSandbox:
    try:
        return await node.assign(spec)
    except AtollError as error:
        raise WarmUnusable(error.message) from error


def _check_same_request(key: str, digest: str, order: CreateOrder) -> None:
    if digest != order.request_digest:
        raise Conflict(f"the idempotency key {key!r} was used for a different request", hint="take a new key")
