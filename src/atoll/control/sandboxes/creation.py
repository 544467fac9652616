"""Making a sandbox: quota, template, node; the row is written before the node is asked, RUNNING before the answer.

A create that is cancelled makes no sandbox, unless an idempotency key can find it again.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import structlog

from atoll.control.access.auth import Caller
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.nodes.placement import NodeLoad, choose_node
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.ending import SandboxEnding
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.ids import new_sandbox_id
from atoll.control.sandboxes.lookup import VISIBLE
from atoll.control.sandboxes.orders import (
    NO_NEW_PRIVILEGES_KEY,
    TIER_KEY,
    CreateOrder,
    Policy,
    check_order,
    network_rate,
)
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.sizing import limits_for
from atoll.control.secrets.service import SecretFilling
from atoll.control.store import Idempotency, Store
from atoll.control.templates.catalog import TemplateService
from atoll.control.volumes.service import VolumeService
from atoll.model.errors import Conflict, CreateFailed
from atoll.model.events import EventType
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import EndReason, Limits, SandboxRecord, SandboxSpec, SandboxState
from atoll.model.seams import NodeClient
from atoll.model.template import Template

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
        wait_until_ready: Callable[[str, Template], Awaitable[None]],
    ) -> None:
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
        loads = [load for load in self._loads(template, limits) if place in (None, load.node_id)]
        node = self._nodes.client(choose_node(loads))
        record = self._new_record(caller, order, template, node.node_id, limits)
        record = replace(record, volumes=tuple(mounts))
        network = await self._filling.of_order(record.team_id, record.network)
        self._quota.take(record.sandbox_id, record.team_id, record.node_id, limits)
        making = self._background.begin(self._begin(record, order, template, node, network))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            self._background.begin(self._end_unused(record.sandbox_id, making))
            raise

    async def _begin(
        self, record: SandboxRecord, order: CreateOrder, template: Template, node: NodeClient, network: NetworkPolicy
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
            made = await node.create(_spec(record, order, template, network))
            if template.ready_cmd is not None:
                await self._wait_until_ready(record.sandbox_id, template)
            ready = time.perf_counter()
            if not await self._store.running(record.sandbox_id, made.tier):
                raise CreateFailed(f"sandbox {record.sandbox_id!r} ended while it was being made")
            now = await self._filling.as_it_is_now(record.team_id, record.network)
            if now != network:  # a secret was changed while it was being made
                await node.update_network(record.sandbox_id, now)
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
            await self._store.end(record.sandbox_id, EndReason.CREATE_FAILED, self._clock.now(), free_key=True)
        except Exception:
            _log.exception("sandbox.undo_failed", sandbox_id=record.sandbox_id)  # the next start settles it
        self._quota.release(record.sandbox_id)

    async def _end_unused(self, sandbox_id: str, making: asyncio.Future[SandboxRecord]) -> None:
        await asyncio.wait([making])
        if making.exception() is None:
            await self._ending.abandon(sandbox_id)

    def _loads(self, template: Template, limits: Limits) -> list[NodeLoad]:
        holders, quota = self._templates.holders(template), self._quota
        return self._nodes.loads(holders, quota.on_node, lambda node_id: quota.node_lacks(node_id, limits))

    def _new_record(
        self, caller: Caller, order: CreateOrder, template: Template, node_id: str, limits: Limits
    ) -> SandboxRecord:
        now = self._clock.now()
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
            network=replace(order.network, mib_s=network_rate(order.metadata, self._policy)),
            auto_pause=order.auto_pause,
            auto_pause_memory=order.auto_pause_memory,
            auto_resume=order.auto_resume,
            mask_request_host=order.mask_request_host,
        )


def _check_same_request(key: str, digest: str, order: CreateOrder) -> None:
    if digest != order.request_digest:
        raise Conflict(f"the idempotency key {key!r} was used for a different request", hint="take a new key")


def _spec(record: SandboxRecord, order: CreateOrder, template: Template, network: NetworkPolicy) -> SandboxSpec:
    return SandboxSpec(
        sandbox_id=record.sandbox_id,
        template_id=record.template_id,
        image_id=template.image_id,
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
        network=network,
        volumes=record.volumes,
        no_new_privileges=template.no_new_privileges or NO_NEW_PRIVILEGES_KEY in order.metadata,
    )
