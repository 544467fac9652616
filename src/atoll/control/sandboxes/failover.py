"""What becomes of sandboxes whose node is lost: shown as lost; those with `restart: always` are begun anew elsewhere.

    lost ──► placed on another node ──► moved in the store (RESUMING, next generation) ──► made there ──► RUNNING

The move in the store decides: a node that returns with a sandbox of an earlier generation ends it before it may let
anything run (`nodes.leases`). What fails is tried again until the sandbox's own end, or its node counts as gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import structlog

from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.lookup import lost
from atoll.control.sandboxes.orders import GPU_KEY, RESTART_ALWAYS, RESTART_KEY, SPREAD_KEY, Policy, disk_rate
from atoll.control.sandboxes.placing import Placing
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.sleeping import SleepingRoutes
from atoll.control.sandboxes.spec import spec_for
from atoll.control.secrets.service import SecretFilling
from atoll.control.store import Store
from atoll.control.templates.catalog import TemplateService
from atoll.model.errors import AtollError, NodeUnreachable
from atoll.model.events import EventType
from atoll.model.sandbox import EndReason, PauseMode, SandboxRecord, SandboxState
from atoll.model.template import Template

AGAIN_S = 5.0
"""Between attempts to begin a sandbox anew."""
_RUNS = (SandboxState.RUNNING, SandboxState.PAUSING)
_BEGUN = (*_RUNS, SandboxState.RESUMING)

_log = structlog.get_logger("atoll.control")


class SandboxFailover:
    """See the module."""

    def __init__(
        self,
        *,
        store: Store,
        nodes: NodeRegistry,
        templates: TemplateService,
        placing: Placing,
        policy: Policy,
        clock: Clock,
        background: Background,
        quota: SandboxQuota,
        expiry: Expiry,
        journal: Journal,
        filling: SecretFilling,
        sleeping: SleepingRoutes,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._templates = templates
        self._placing = placing
        self._policy = policy
        self._clock = clock
        self._background = background
        self._quota = quota
        self._expiry = expiry
        self._journal = journal
        self._filling = filling
        self._sleeping = sleeping
        self._pending: dict[str, object] = {}
        """Who begins it anew: a mark of each attempt."""
        self._missing: set[str] = set()
        """Of those the ones that their nodes do not have, as they say themselves."""
        self._lost: set[str] = set()
        self._stopping = asyncio.Event()

    @staticmethod
    def wants_restart(record: SandboxRecord) -> bool:
        """Its creator asked for it, and nothing of it is bound to its node."""
        is_asked = record.metadata.get(RESTART_KEY) == RESTART_ALWAYS
        return is_asked and record.state in _BEGUN and not record.volumes

    def node_given_up(self, node_id: str) -> None:
        """It has been silent for so long that its sandboxes count as lost until it returns."""
        self._background.begin(self._give_up(node_id))

    def found(self, record: SandboxRecord) -> None:
        """Its node is back, and it runs there."""
        self._pending.pop(record.sandbox_id, None)
        self._missing.discard(record.sandbox_id)
        if record.sandbox_id in self._lost:
            self._lost.discard(record.sandbox_id)
            self._journal.note(EventType.RETURNED, record)

    def restart_soon(self, record: SandboxRecord) -> None:
        """Its node does not have it any more."""
        self._missing.add(record.sandbox_id)
        self._begin_restart(record)

    def _begin_restart(self, record: SandboxRecord) -> None:
        if record.sandbox_id not in self._pending and not self._stopping.is_set():
            self._pending[record.sandbox_id] = mark = object()
            self._background.begin(self._restart(record.sandbox_id, mark))

    def stop(self) -> None:
        """Nothing is begun any more. What is pending is settled by the next start."""
        self._stopping.set()

    # What an object store has of it

    async def copy_for_others(self, record: SandboxRecord) -> str | None:
        """Before a pause: an image of its disk as it is now, on its node; None: it is of no use, or cannot be made."""
        if not self._policy.has_objects or record.volumes:
            return None
        image_id = secrets.token_hex(20)
        try:
            node = self._nodes.client(record.node_id)
            await node.snapshot(record.sandbox_id, image_id, PauseMode.FILESYSTEM, durable=False)
        except AtollError as error:
            _log.warning("sandbox.not_copied", sandbox_id=record.sandbox_id, error=str(error))
            return None
        return image_id

    async def share_copy(self, record: SandboxRecord, image_id: str) -> None:
        """It is paused: from when this is done it can be resumed elsewhere."""
        try:
            await self._nodes.client(record.node_id).share_image(image_id)
            if await self._store.set_kept_image(record, image_id):
                _log.info("sandbox.kept", sandbox_id=record.sandbox_id, image=image_id)
        except AtollError as error:
            _log.warning("sandbox.not_kept", sandbox_id=record.sandbox_id, error=str(error))

    async def bring_back(self, record: SandboxRecord, changes: Mapping[str, Any]) -> SandboxRecord | None:
        """On another node, under its id, with its disk as an object store has it: when it was paused, or its newest
        snapshot. `changes`: columns that are as `record` says from now on.

        None: it was moved or has ended meanwhile. Raises SandboxNotFound (the store has nothing of it), QuotaExceeded,
        CreateFailed, NodeUnreachable; it is as it was then, or another call brings it back.
        """
        template = await self._kept(record)
        if template is None:
            raise lost(record)
        return await self._begin_anew(record, template, changes)

    async def keep_if_shared(self, record: SandboxRecord) -> bool:
        """Its node does not have it any more: whether it can be brought back later. It is paused from now on then."""
        if record.kept_image is not None and record.state in (SandboxState.PAUSED, SandboxState.RESUMING):
            await self._store.transition(record.sandbox_id, SandboxState.PAUSED)
            return True
        template = await self._templates.newest_shared(record) if record.state in _RUNS and not record.volumes else None
        if template is None or template.image_id is None:
            return False
        if await self._store.keep_as_paused(record, template.image_id):
            self._expiry.forget(record.sandbox_id)
            self._quota.set_aside(record.sandbox_id)
        return True

    async def _kept(self, record: SandboxRecord) -> Template | None:
        if record.kept_image is None:
            return await self._templates.newest_shared(record) if not record.volumes else None
        template = await self._templates.find(record.template_id, record.team_id)
        return replace(template, image_id=record.kept_image, node_id=record.node_id, shared=True, tier=record.tier)

    # Begun anew

    async def _give_up(self, node_id: str) -> None:
        for record in await self._store.in_states(_BEGUN):
            if record.node_id != node_id:
                continue
            if record.state in _RUNS:
                self._lost.add(record.sandbox_id)
                self._journal.note(EventType.LOST, record, node_id=node_id)
            if self.wants_restart(record):
                self._begin_restart(record)

    async def _restart(self, sandbox_id: str, mark: object) -> None:
        generation: int | None = None
        try:
            while not self._stopping.is_set() and self._pending.get(sandbox_id) is mark:
                record = await self._store.find(sandbox_id)
                if record is None or not self.wants_restart(record) or record.end_at <= self._clock.now():
                    return
                generation = record.generation if generation is None else generation
                is_moved = record.generation != generation  # by an attempt that failed
                if not is_moved and sandbox_id not in self._missing and not self._nodes.is_lost(record.node_id):
                    return  # its node is back: what that has is left to it, and what it lacks comes by `restart_soon`
                try:
                    template = await self._kept(record) or await self._templates.find(
                        record.template_id, record.team_id
                    )
                    await self._begin_anew(record, template, {})
                    return
                except AtollError as error:
                    _log.warning("sandbox.not_restarted", sandbox_id=sandbox_id, error=str(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN_S):
                        await self._stopping.wait()
        finally:
            if self._pending.get(sandbox_id) is mark:
                del self._pending[sandbox_id]
                self._missing.discard(sandbox_id)

    async def _begin_anew(
        self, record: SandboxRecord, template: Template, changes: Mapping[str, Any]
    ) -> SandboxRecord | None:
        """Raises AtollError: it is where it was, or paused with what is kept of it, or RESUMING where it was to be."""
        kept_image = template.image_id if template.shared else None
        sandbox_id, before, team_id = record.sandbox_id, record.node_id, record.team_id
        group, gpu = record.metadata.get(SPREAD_KEY, ""), record.metadata.get(GPU_KEY, template.gpu)
        node_id = self._placing.node_for(template, record.limits, team_id=team_id, group=group, gpu=gpu)
        if self._nodes.is_silent(node_id):
            raise NodeUnreachable(f"no node that answers can take sandbox {sandbox_id!r}")
        network = await self._filling.as_it_is_now(team_id, record.network)
        if not await self._store.move(record, node_id, kept_image):
            return None  # it has ended, or was moved by somebody else
        self._quota.take(sandbox_id, team_id, node_id, record.limits, group=group, beyond_quota=True)
        self._sleeping.remove(sandbox_id)
        disk_mib_s, generation = disk_rate(record.metadata, self._policy), record.generation + 1
        try:
            if not self._nodes.is_silent(before):  # it may have returned just now
                await self._nodes.client(before).kill(sandbox_id, EndReason.LOST)
            spec = spec_for(record, template, network, disk_mib_s, generation)
            made = await self._nodes.client(node_id).create(spec)
        except AtollError:
            if kept_image is not None and await self._store.transition(
                sandbox_id, SandboxState.PAUSED, of_generation=generation
            ):  # it can be tried again by the next connect
                self._quota.set_aside(sandbox_id)
            raise
        changes = {**changes, "pause_mode": None, "kept_image": None, "tier": made.tier}
        if not await self._store.transition(sandbox_id, SandboxState.RUNNING, of_generation=generation, **changes):
            now = await self._store.find(sandbox_id)
            if now is not None and (now.state, now.generation) == (SandboxState.RUNNING, generation):
                return now  # its node was silent meanwhile, and has reported it
            await self._nodes.client(node_id).kill(sandbox_id, EndReason.KILLED)
            return None
        self._lost.discard(sandbox_id)
        self._expiry.set(sandbox_id, record.end_at)
        self._journal.note(EventType.RESTARTED, sandbox_id, node_id=node_id)
        _log.info("sandbox.restarted", sandbox_id=sandbox_id, node=node_id, before=before, generation=generation)
        state = SandboxState.RUNNING
        return replace(record, **changes, node_id=node_id, generation=generation, state=state)
