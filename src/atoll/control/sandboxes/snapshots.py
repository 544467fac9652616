"""Snapshots and forks of a sandbox that runs; it goes on.

A snapshot is a template with a build that is ready: named and tagged like any other, found and removed like any other.
A fork is a snapshot without a name, and sandboxes of it at once.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

from atoll.control.access.auth import Caller
from atoll.control.clock import Clock
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.creation import SandboxCreation
from atoll.control.sandboxes.lookup import SandboxLookup
from atoll.control.sandboxes.orders import CreateOrder
from atoll.control.store.templates import BuildRow, BuildStatus, TemplateRow, TemplateTables
from atoll.control.templates.catalog import TemplateService
from atoll.control.templates.kept import TeamImages
from atoll.control.templates.names import DEFAULT_TAG, new_template_id, parse_reference
from atoll.model.errors import (
    AtollError,
    Conflict,
    InvalidRequest,
    NotOffered,
    QuotaExceeded,
    SandboxGone,
    SandboxNotFound,
)
from atoll.model.sandbox import PauseMode, SandboxRecord, SandboxState
from atoll.model.seams import NodeSnapshot
from atoll.model.template import Template

MAX_FORKS = 100
AT_ONCE = 8
"""Sandboxes of one fork that are made at the same time."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`names`: `namespace/name:tag`; a snapshot without a name goes by its id alone."""

    snapshot_id: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SnapshotOrigin:
    """A snapshot and where it comes from. `sandbox_id`: what it was taken of last; `made_of`: that one's template.

    `made_of` is None once that sandbox is forgotten. `label`: its metadata `atoll.sid`, an agent's session; or "".
    """

    template_id: str
    name: str
    sandbox_id: str
    created_at: datetime
    made_of: str | None
    label: str


class SandboxSnapshots:
    """See the module."""

    def __init__(
        self,
        *,
        tables: TemplateTables,
        catalog: TemplateService,
        lookup: SandboxLookup,
        nodes: NodeRegistry,
        creation: SandboxCreation,
        images: TeamImages,
        clock: Clock,
        has_objects: bool = False,
    ) -> None:
        self._tables = tables
        self._catalog = catalog
        self._lookup = lookup
        self._nodes = nodes
        self._creation = creation
        self._images = images
        self._clock = clock
        self._has_objects = has_objects

    async def create(self, caller: Caller, sandbox_id: str, name: str | None, mode: PauseMode | None) -> Snapshot:
        """`mode` None: with memory where the tier can and no volume is mounted, else of the files alone.

        Raises SandboxNotFound, Conflict (it is paused, or the name is a template's), InvalidRequest, Forbidden,
        NotOffered, QuotaExceeded, PlatformError.
        """
        record = await self._running(caller, sandbox_id)
        if record.volumes:  # what is made of it would need the same ones at the same places for ever
            if mode is PauseMode.MEMORY:
                raise NotOffered("a sandbox with volumes has no snapshot with memory", hint='ask for mode="filesystem"')
            mode = PauseMode.FILESYSTEM
        template, tag = await self._template_for(caller, record, name)
        image_id = secrets.token_hex(20)
        made = await self._take(record, image_id, mode, durable=True)
        if self._has_objects:  # what is answered is to outlive its node
            await self._nodes.client(record.node_id).share_image(image_id)
        now = self._clock.now()
        build = BuildRow(
            build_id=str(uuid4()),
            template_id=template.template_id,
            status=BuildStatus.READY,
            tags=(tag,),
            limits=record.limits,
            created_at=now,
            updated_at=now,
            finished_at=now,
            node_id=record.node_id,
            images=(image_id,),
            settings={
                "user": made.default_user,
                "workdir": made.default_workdir,
                "env": dict(made.env_vars),
                "start_cmd": made.start_cmd,
                "interpreter": made.interpreter,
                "tier": made.tier,
                "gpu": made.gpu,
                "no_new_privileges": made.no_new_privileges,
                "shared": self._has_objects,
            },
        )
        if await self._tables.find(template.template_id) is None:
            await self._tables.add(template)
        await self._tables.add_build(build)
        await self._tables.assign_tags(template.template_id, build.build_id, (tag,), now)
        await self._tables.taken_of(template.template_id, record.sandbox_id, now)
        return _shown(template, tag, await self._catalog.namespace(template.team_id))

    async def page(self, caller: Caller, sandbox_id: str | None, name: str | None) -> list[Snapshot]:
        """The team's, newest first."""
        rows = [row for row in await self._tables.of_team(caller.team_id) if row.sandbox_id is not None]
        if sandbox_id is not None:
            rows = [row for row in rows if row.sandbox_id == sandbox_id]
        if name is not None:
            short_name = parse_reference(name).name
            rows = [row for row in rows if row.name == short_name]
        tags_of = await self._tables.tags_of_team(caller.team_id)
        namespace = await self._catalog.namespace(caller.team_id)
        found = []
        for row in sorted(rows, key=lambda one: one.updated_at, reverse=True):
            tags = sorted((tag.created_at, tag.tag) for tag in tags_of.get(row.template_id, ()))
            found += [_shown(row, tag, namespace) for _, tag in reversed(tags)]
        return found

    async def origins(self, caller: Caller, most: int) -> tuple[list[SnapshotOrigin], int]:
        """The team's newest, newest first, `most` of them; and how many there are."""
        rows = [row for row in await self._tables.of_team(caller.team_id) if row.sandbox_id is not None]
        newest = sorted(rows, key=lambda one: one.created_at, reverse=True)[:most]
        sandboxes = await self._lookup.get_those(caller, {row.sandbox_id for row in newest if row.sandbox_id})
        found = []
        for row in newest:
            sandbox = sandboxes.get(row.sandbox_id or "")
            made_of, label = (sandbox.template_id, sandbox.metadata.get("atoll.sid", "")) if sandbox else (None, "")
            name = row.name if row.name != row.template_id else ""
            found.append(SnapshotOrigin(row.template_id, name, row.sandbox_id or "", row.created_at, made_of, label))
        return found, len(rows)

    async def fork(
        self, caller: Caller, sandbox_id: str, timeout_s: int, count: int
    ) -> list[SandboxRecord | AtollError]:
        """One outcome for each sandbox that was asked for. Raises as `create`, and InvalidRequest for the count."""
        if not 1 <= count <= MAX_FORKS:
            raise InvalidRequest(f"count must be between 1 and {MAX_FORKS}, not {count}")
        record = await self._running(caller, sandbox_id)
        image_id = secrets.token_hex(20)
        made = await self._take(record, image_id, None, durable=False)
        template = Template(
            template_id=record.template_id,
            names=(record.template_alias,) if record.template_alias else (),
            build_id="",
            layers=(),
            limits=record.limits,
            created_at=self._clock.now(),
            env_vars=made.env_vars,
            default_user=made.default_user,
            default_workdir=made.default_workdir,
            start_cmd=made.start_cmd,
            interpreter=made.interpreter,
            image_id=image_id,
            node_id=record.node_id,
            tier=made.tier,
            gpu=made.gpu,
            no_new_privileges=made.no_new_privileges,
        )
        order = CreateOrder(
            template=record.template_alias or record.template_id,
            timeout_s=timeout_s,
            secure=record.envd_access_token is not None,
            metadata=record.metadata,
            env_vars=record.env_vars,
            public_traffic=record.traffic_access_token is None,
            mask_request_host=record.mask_request_host,
            network=replace(record.network, mib_s=None),
            auto_pause=record.auto_pause,
            auto_pause_memory=record.auto_pause_memory,
            auto_resume=record.auto_resume,
            volumes=tuple((mount.name, mount.path) for mount in record.volumes),
        )
        turns = asyncio.Semaphore(AT_ONCE)

        async def one() -> SandboxRecord | AtollError:
            async with turns:
                try:
                    return await self._creation.create_of(caller, order, template)
                except AtollError as error:
                    return error

        outcomes = await asyncio.gather(*(one() for _ in range(count)))
        if all(isinstance(outcome, QuotaExceeded) for outcome in outcomes) and isinstance(outcomes[0], QuotaExceeded):
            raise outcomes[0]
        return list(outcomes)

    async def _running(self, caller: Caller, sandbox_id: str) -> SandboxRecord:
        record = await self._lookup.get(caller, sandbox_id)
        if record.state is not SandboxState.RUNNING:
            raise Conflict(f"sandbox {record.sandbox_id!r} is not running", hint="resume it first (connect)")
        return record

    async def _take(
        self, record: SandboxRecord, image_id: str, mode: PauseMode | None, *, durable: bool
    ) -> NodeSnapshot:
        await self._images.check_room(record.team_id)
        try:
            node = self._nodes.client(record.node_id)
            made = await node.snapshot(record.sandbox_id, image_id, mode, durable=durable)
        except SandboxGone as error:
            raise SandboxNotFound(record.sandbox_id) from error
        self._images.made(record.team_id, image_id)
        return made

    async def _template_for(self, caller: Caller, record: SandboxRecord, name: str | None) -> tuple[TemplateRow, str]:
        """The snapshot's template, which need not be in the store yet, and the tag that is asked for."""
        now, template_id = self._clock.now(), new_template_id()
        if name is None:
            row = TemplateRow(template_id, caller.team_id, template_id, False, now, now, record.sandbox_id)
            return row, DEFAULT_TAG
        reference = await self._catalog.own_reference(name, caller.team_id)
        found = await self._tables.find_named(caller.team_id, reference.name)
        if found is not None and found.sandbox_id is None:
            raise Conflict(f"the name {reference.name!r} is that of a template", hint="choose another name")
        row = TemplateRow(template_id, caller.team_id, reference.name, False, now, now, record.sandbox_id)
        return found or row, reference.tag_or_default


def _shown(row: TemplateRow, tag: str, namespace: str) -> Snapshot:
    if row.name == row.template_id:
        return Snapshot(f"{row.template_id}:{tag}", ())
    full = f"{namespace}/{row.name}:{tag}"
    return Snapshot(full, (full,))
