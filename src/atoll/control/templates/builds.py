"""Template builds as a team sees them: asked for, begun, followed, and what they have made named and removed.

    request ──► WAITING ──► start ──► BUILDING ──► READY (its tags name it)
                                          └──────► ERROR (message and step)

Owns the rows of templates, builds and tags, and one task per build. How a step is carried out is `builder`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import uuid4
from weakref import WeakValueDictionary

import structlog

from atoll.control.access.auth import Caller
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.sizing import limits_for
from atoll.control.store.layers import LayerTables
from atoll.control.store.templates import BuildRow, BuildStatus, TagRow, TemplateRow, TemplateTables
from atoll.control.templates.base_images import BaseImages, BaseOrder
from atoll.control.templates.build_log import BuildLog, BuildLogs
from atoll.control.templates.builder import BuildOrder, StepFailed, TemplateBuilder
from atoll.control.templates.catalog import TemplateService
from atoll.control.templates.kept import TeamImages
from atoll.control.templates.names import new_template_id, parse_reference, tags_of_request
from atoll.control.templates.steps import Step, check_steps, gpu_of
from atoll.control.templates.uploads import Uploads, check_hash
from atoll.model.errors import (
    AtollError,
    BuildFailed,
    Conflict,
    Forbidden,
    InvalidRequest,
    QuotaExceeded,
    TemplateNotFound,
)
from atoll.model.sandbox import Limits
from atoll.model.seams import NodeClient
from atoll.model.template import Template

AT_ONCE = 4
"""Builds that run at once; others wait their turn."""
PER_TEAM = 20
"""Builds of one team that run or wait for their turn."""
KEPT_BUILDS = 5
"""Builds of a template that are remembered besides those with a tag."""
SWEEP_EVERY_S = 3600.0

_log = structlog.get_logger("atoll.control")


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a build asks for its sandboxes; None: as every template has it.

    The disk of a sandbox is empty at first, so `free_disk_mib` is the least size that it has.
    """

    cpu_count: int | None = None
    memory_mib: int | None = None
    free_disk_mib: int | None = None


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """`within_s`: how long one build may take. `of_team`: how many of a team's run at once, so that others have a turn.

    `largest`: how large its sandboxes may be; None: as large as asked for.
    """

    within_s: float = 3600.0
    of_team: int = AT_ONCE - 1
    largest: Limits | None = None
    has_objects: bool = False
    """Whether other nodes are to get their images."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A build that waits to be started."""

    template: TemplateRow
    build: BuildRow


@dataclass(frozen=True, slots=True)
class Instructions:
    """What a build is made of, as the client says it. Exactly one of `from_image` and `from_template`."""

    from_image: str | None
    from_template: str | None
    steps: Sequence[Step]
    start_cmd: str | None = None
    ready_cmd: str | None = None
    force: bool = False
    registry: Mapping[str, str] | None = field(default=None, repr=False)
    """Credentials for the image's registry, as `wire.rest` has checked them."""


class TemplateBuildService:
    """What the handlers of template builds call."""

    def __init__(
        self,
        *,
        tables: TemplateTables,
        layers: LayerTables,
        catalog: TemplateService,
        nodes: NodeRegistry,
        bases: BaseImages,
        builder: TemplateBuilder,
        images: TeamImages,
        uploads: Uploads,
        logs: BuildLogs,
        clock: Clock,
        background: Background,
        limits: BuildLimits,
        also_kept: Callable[[], Iterable[str]],
    ) -> None:
        self._tables = tables
        self._layers = layers
        self._bases = bases
        self._catalog = catalog
        self._nodes = nodes
        self._builder = builder
        self._images = images
        self._uploads = uploads
        self._logs = logs
        self._clock = clock
        self._background = background
        self._most = limits
        self._also_kept = also_kept
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._turns_of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._running: dict[str, tuple[str, str, asyncio.Task[None]]] = {}

    # Builds

    async def request(self, caller: Caller, name: str, tags: Sequence[str], sizes: Sizes) -> Requested:
        """A build of the team's template of that name, which is made if there is none.

        Raises InvalidRequest, Forbidden (another team's name).
        """
        reference = await self._catalog.own_reference(name, caller.team_id)
        limits = self._limits(sizes)
        template = await self._template_named(caller, reference.name)
        now = self._clock.now()
        build = BuildRow(
            build_id=str(uuid4()),
            template_id=template.template_id,
            status=BuildStatus.WAITING,
            tags=tags_of_request(reference, tags),
            limits=limits,
            created_at=now,
            updated_at=now,
        )
        await self._tables.add_build(build)
        return Requested(template, build)

    async def start(self, caller: Caller, template_id: str, build_id: str, instructions: Instructions) -> None:
        """Begins a build that waits. Raises TemplateNotFound, InvalidRequest, Conflict, QuotaExceeded."""
        template, build = await self._own_build(caller, template_id, build_id)
        check_steps(instructions.steps)
        if (instructions.from_image is None) == (instructions.from_template is None):
            raise InvalidRequest("say exactly one of fromImage and fromTemplate")
        if sum(team == caller.team_id for team, _, _ in self._running.values()) >= PER_TEAM:
            raise QuotaExceeded(f"{PER_TEAM} builds of this team are under way", hint="wait until one is done")
        await self._images.check_room(caller.team_id)
        if not await self._tables.begin_build(build_id, self._clock.now()):
            raise Conflict(f"the build {build_id!r} has been started before", hint="ask for a new one")
        work = self._run(caller.team_id, template, build, instructions)
        self._running[build_id] = (caller.team_id, template_id, self._background.keep_running(work))

    async def find_build(self, caller: Caller, template_id: str, build_id: str) -> BuildRow:
        """Raises TemplateNotFound."""
        return (await self._own_build(caller, template_id, build_id))[1]

    async def upload_link(self, caller: Caller, template_id: str, files_hash: str) -> tuple[bool, str]:
        """Whether the archive of that hash is here, and the path that takes it. Raises TemplateNotFound."""
        await self._own(caller, template_id)
        files_hash = check_hash(files_hash)
        present = await asyncio.to_thread(self._uploads.find, caller.team_id, files_hash) is not None
        return present, self._uploads.link(caller.team_id, files_hash)

    # Templates

    async def own(self, caller: Caller) -> list[tuple[TemplateRow, list[BuildRow]]]:
        """The team's templates with their builds, newest first."""
        rows = [row for row in await self._tables.of_team(caller.team_id) if row.sandbox_id is None]
        builds = await self._tables.builds_of_team(caller.team_id)
        return [(row, builds.get(row.template_id, [])) for row in rows]

    async def own_with_builds(self, caller: Caller, name: str) -> tuple[TemplateRow, list[BuildRow]] | None:
        """One that the team has made; None: it has not."""
        try:
            row = await self._catalog.find_row(name, caller.team_id)
        except InvalidRequest:
            return None
        if row is None or row.team_id != caller.team_id:
            return None
        return row, await self._tables.builds(row.template_id)

    async def remove(self, caller: Caller, name: str) -> None:
        """Deletes a template with its builds; sandboxes made of it live on. Raises TemplateNotFound, Forbidden."""
        row = await self._own(caller, name)
        for _, template_id, task in list(self._running.values()):
            if template_id == row.template_id:
                task.cancel()
        builds = [build.build_id for build in await self._tables.builds(row.template_id)]
        await self._tables.remove(row.template_id)
        await asyncio.to_thread(self._logs.remove, builds)

    async def publish(self, caller: Caller, name: str, public: bool) -> TemplateRow:
        """Raises TemplateNotFound, Forbidden."""
        row = await self._own(caller, name)
        await self._tables.publish(row.template_id, public, self._clock.now())
        return row

    # Tags

    async def tags(self, caller: Caller, name: str) -> list[TagRow]:
        """Raises TemplateNotFound."""
        row = await self._catalog.find_row(name, caller.team_id)
        if row is None:
            await self._catalog.find(name, caller.team_id)  # a built-in one has none; else it says what there is
            return []
        return await self._tables.tags(row.template_id)

    async def assign_tags(self, caller: Caller, target: str, tags: Sequence[str]) -> tuple[str, tuple[str, ...]]:
        """Further tags for what `target` names; returns the build's id and the tags.

        Raises TemplateNotFound, InvalidRequest, Forbidden.
        """
        reference = parse_reference(target)
        row = await self._own(caller, target)
        tag_names = tags_of_request(parse_reference(reference.name), tags)
        found = [
            tag.build_id for tag in await self._tables.tags(row.template_id) if tag.tag == reference.tag_or_default
        ]
        if not found:
            raise TemplateNotFound(target[:200])
        await self._tables.assign_tags(row.template_id, found[0], tag_names, self._clock.now())
        return found[0], tag_names

    async def remove_tags(self, caller: Caller, name: str, tags: Sequence[str]) -> None:
        """Raises TemplateNotFound (of the template, or none of the tags), Forbidden."""
        row = await self._own(caller, name)
        tag_names = [tag.strip().lower() for tag in tags]
        if not await self._tables.remove_tags(row.template_id, tag_names):
            raise TemplateNotFound(f"{name[:100]}:{', '.join(tag_names)[:100]}")

    # Lifetime

    async def recover(self) -> None:
        """What an earlier server left half-built has failed."""
        message = "the server was restarted during the build; build it again"
        if failed := await self._tables.fail_unfinished(message, self._clock.now()):
            _log.warning("template.builds_interrupted", builds=failed)

    async def run(self) -> None:
        """Removes what nobody needs any more, for ever; cancel it to stop."""
        while True:
            try:
                await self.sweep()
            except AtollError as error:
                _log.warning("template.sweep_failed", error=str(error))
            await self._clock.sleep(SWEEP_EVERY_S)

    async def sweep(self) -> None:
        """Old builds without a tag, images that no build names, uploads that none has used. Raises AtollError."""
        by_template: dict[str, list[BuildRow]] = {}
        for build in sorted(await self._tables.all_builds(), key=lambda one: one.created_at, reverse=True):
            by_template.setdefault(build.template_id, []).append(build)
        kept: set[str] = set(self._also_kept())
        old: list[str] = []
        for template_id, builds in by_template.items():
            tagged = {tag.build_id for tag in await self._tables.tags(template_id)}
            for number, build in enumerate(builds):
                if build.build_id in tagged or build.build_id in self._running or number < KEPT_BUILDS:
                    kept |= set(build.images)
                else:
                    old.append(build.build_id)
        if old:
            await self._tables.remove_builds(old)
            await asyncio.to_thread(self._logs.remove, old)
        for node_id, node in self._nodes.worth_asking().items():
            if removed := await node.keep_images(sorted(kept)):
                _log.info("template.images_removed", node=node_id, images=removed)
        await self._forget_layers()
        await asyncio.to_thread(self._uploads.sweep)

    async def _forget_layers(self) -> None:
        """What says which image a step has made goes with the image."""
        nodes = list(self._nodes.worth_asking().values())
        known = await self._layers.images() if nodes else set()
        there = {one for one in known for node in nodes if await node.has_image(one)}
        if known - there:
            await self._layers.forget(known - there)

    # One build

    async def _run(self, team_id: str, template: TemplateRow, build: BuildRow, instructions: Instructions) -> None:
        log = self._logs.open(build.build_id)
        turns = self._turns_of.setdefault(team_id, asyncio.Semaphore(self._most.of_team))
        try:
            if self._turns.locked() or turns.locked():
                log.write("waiting for other builds to end")
            async with turns, self._turns, asyncio.timeout(self._most.within_s):
                await self._build(team_id, template, build, instructions, log)
        except StepFailed as error:
            await self._fail(build, log, error.message, error.step)
        except TimeoutError:
            await self._fail(build, log, f"the build took longer than {self._most.within_s:.0f} s", log.step or "base")
        except asyncio.CancelledError:
            await asyncio.shield(self._fail(build, log, "the build was cancelled", log.step or "base"))
            raise
        except Exception as error:
            _log.exception("template.build_failed", build_id=build.build_id)
            await self._fail(build, log, f"the platform failed: {error}", log.step or "base")
        finally:
            self._running.pop(build.build_id, None)
            log.close()

    async def _build(
        self, team_id: str, template: TemplateRow, build: BuildRow, instructions: Instructions, log: BuildLog
    ) -> None:
        log.step = "base"
        if instructions.from_template is not None:
            base = await self._template(instructions.from_template, team_id)
            log.write(f"FROM {instructions.from_template}")
        else:
            image = instructions.from_image or ""
            wanted = BaseOrder(team_id, image, build.limits, instructions.registry, instructions.force)
            base = await self._bases.find(wanted, self._nodes.worth_asking(), log)

        async def on_image(images: tuple[str, ...]) -> None:
            await self._tables.change_build(build.build_id, images=list(images), updated_at=self._clock.now())
            if images[-1] != base.image_id:
                self._images.made(team_id, images[-1])
            try:
                await self._images.check_room(team_id)
            except QuotaExceeded as error:
                raise StepFailed(log.step, error.message) from error

        node = self._node_for(base)
        order = BuildOrder(
            node=node,
            team_id=team_id,
            template_id=template.template_id,
            base=base,
            steps=instructions.steps,
            limits=build.limits,
            start_cmd=instructions.start_cmd or None,
            ready_cmd=instructions.ready_cmd or None,
            force=instructions.force,
        )
        built = await self._builder.build(order, log, on_image)
        if self._most.has_objects and built.images:
            log.write("sharing the image with other nodes")
            await node.share_image(built.images[-1])
        settings: Mapping[str, object] = {
            "shared": self._most.has_objects and bool(built.images),
            **built.settings.as_json(),
            "start_cmd": order.start_cmd or (base.start_cmd if not order.ready_cmd else None),
            "ready_cmd": order.ready_cmd or base.ready_cmd,
            "interpreter": base.interpreter,
            "tier": base.tier,
            "gpu": gpu_of(built.settings, base),
            "no_new_privileges": base.no_new_privileges,
        }
        log.step = "finalize"
        log.write("the template is ready")
        now = self._clock.now()
        done = {"status": BuildStatus.READY.value, "finished_at": now, "updated_at": now}
        await self._tables.change_build(build.build_id, settings=dict(settings), node_id=node.node_id, **done)
        await self._tables.assign_tags(template.template_id, build.build_id, build.tags, now)

    async def _fail(self, build: BuildRow, log: BuildLog, message: str, step: str) -> None:
        log.write(message, level="error")
        now = self._clock.now()
        changes = {"status": BuildStatus.ERROR.value, "finished_at": now, "updated_at": now}
        await self._tables.change_build(build.build_id, error=message, error_step=step, **changes)

    # Inside

    async def _template(self, name: str, team_id: str) -> Template:
        try:
            await self._catalog.prepare(name, self._most.within_s)
            return await self._catalog.find(name, team_id)
        except (TemplateNotFound, BuildFailed) as error:
            raise StepFailed("base", error.message) from error

    def _node_for(self, base: Template) -> NodeClient:
        """One that has the base. Raises StepFailed."""
        holders = self._catalog.holders(base)
        for node_id, node in self._nodes.worth_asking().items():
            if node_id in holders:
                return node
        raise StepFailed("base", f"no node that has the template {base.template_id!r} answers")

    async def _template_named(self, caller: Caller, name: str) -> TemplateRow:
        if (found := await self._tables.find_named(caller.team_id, name)) is not None:
            if found.sandbox_id is not None:
                raise Conflict(f"the name {name!r} is that of a snapshot", hint="choose another name")
            return found
        now = self._clock.now()
        row = TemplateRow(new_template_id(), caller.team_id, name, public=False, created_at=now, updated_at=now)
        try:
            await self._tables.add(row)
        except Conflict:  # another request was quicker
            found = await self._tables.find_named(caller.team_id, name)
            if found is None:
                raise
            return found
        return row

    async def _own(self, caller: Caller, name: str) -> TemplateRow:
        try:
            row = await self._catalog.find_row(name, caller.team_id)
        except InvalidRequest as error:
            raise TemplateNotFound(name[:200]) from error
        if row is None:
            built_in = await self._catalog.find(name, caller.team_id)
            raise Forbidden(f"{built_in.template_id!r} is a built-in template: it cannot be changed")
        if row.team_id != caller.team_id:
            raise Forbidden(f"{name[:200]!r} is another team's template")
        return row

    async def _own_build(self, caller: Caller, template_id: str, build_id: str) -> tuple[TemplateRow, BuildRow]:
        row = await self._own(caller, template_id)
        build = await self._tables.find_build(build_id)
        if build is None or build.template_id != row.template_id:
            raise TemplateNotFound(f"{template_id[:100]}, build {build_id[:50]}")
        return row, build

    def _limits(self, sizes: Sizes) -> Limits:
        disk_mib = sizes.free_disk_mib if (sizes.free_disk_mib or 0) > Limits().disk_mib else None
        asked = {"atoll.cpu": sizes.cpu_count, "atoll.memory": sizes.memory_mib, "atoll.disk": disk_mib}
        given = {key: str(value) for key, value in asked.items() if value is not None}
        return limits_for(Limits(), given, self._most.largest)

    async def stop(self) -> None:
        """Ends the builds that run; they fail with that reason."""
        tasks = [task for _, _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
