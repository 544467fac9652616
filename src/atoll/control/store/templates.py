"""The tables of templates that teams build: templates, builds, tags. Every write is one statement; nothing is decided.

A template's name is unique in its team. A tag names one build of its template; a build that is ready gets its tags.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from atoll.control.store.database import Database
from atoll.control.store.schema import template_builds, template_tags, templates
from atoll.model.errors import Conflict
from atoll.model.sandbox import Limits
from atoll.model.sealing import Seal


class BuildStatus(StrEnum):
    """Of a build, in E2B's words."""

    WAITING = "waiting"
    BUILDING = "building"
    READY = "ready"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TemplateRow:
    """A template of a team's."""

    template_id: str
    team_id: str
    name: str
    public: bool
    created_at: datetime
    updated_at: datetime
    sandbox_id: str | None = None
    """Of a snapshot: the sandbox that it was taken of last."""


@dataclass(frozen=True, slots=True)
class BuildRow:
    """One build. `images`: the image after each step, the last is the template; `settings`: see `catalog`."""

    build_id: str
    template_id: str
    status: BuildStatus
    tags: tuple[str, ...]
    limits: Limits
    created_at: datetime
    updated_at: datetime
    finished_at: datetime | None = None
    error: str = ""
    error_step: str = ""
    node_id: str = ""
    images: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TagRow:
    """What a tag names."""

    template_id: str
    tag: str
    build_id: str
    created_at: datetime


class TemplateTables:
    """Part of the Store, on its database."""

    def __init__(self, database: Database, seal: Seal) -> None:
        self._database = database
        self._seal = seal

    # Templates

    async def add(self, row: TemplateRow) -> None:
        """Raises Conflict: the team has one of that name, or the team is gone."""
        values = {name: getattr(row, name) for name in TemplateRow.__slots__}
        try:
            await self._database.write(insert(templates).values(values))
        except IntegrityError as error:
            raise Conflict(f"the team has a template {row.name!r} already") from error

    async def find(self, template_id: str) -> TemplateRow | None:
        rows = await self._database.read(select(templates).where(templates.c.template_id == template_id))
        return TemplateRow(**rows[0]) if rows else None

    async def find_named(self, team_id: str, name: str) -> TemplateRow | None:
        statement = select(templates).where(templates.c.team_id == team_id, templates.c.name == name)
        rows = await self._database.read(statement)
        return TemplateRow(**rows[0]) if rows else None

    async def of_team(self, team_id: str) -> list[TemplateRow]:
        """By id."""
        statement = select(templates).where(templates.c.team_id == team_id).order_by(templates.c.template_id)
        return [TemplateRow(**row) for row in await self._database.read(statement)]

    async def publish(self, template_id: str, public: bool, at: datetime) -> bool:
        """False: there is none."""
        statement = update(templates).where(templates.c.template_id == template_id)
        return bool(await self._database.write(statement.values(public=public, updated_at=at)))

    async def taken_of(self, template_id: str, sandbox_id: str, at: datetime) -> bool:
        """The snapshot is of that sandbox now. False: there is none."""
        statement = update(templates).where(templates.c.template_id == template_id)
        return bool(await self._database.write(statement.values(sandbox_id=sandbox_id, updated_at=at)))

    async def remove(self, template_id: str) -> bool:
        """With its builds and tags. False: there is none."""
        return bool(await self._database.write(delete(templates).where(templates.c.template_id == template_id)))

    # Builds

    async def add_build(self, build: BuildRow) -> None:
        """Raises Conflict: its template is gone."""
        try:
            await self._database.write(insert(template_builds).values(self._values(build)))
        except IntegrityError as error:
            raise Conflict(f"the template {build.template_id!r} was deleted meanwhile") from error

    async def find_build(self, build_id: str) -> BuildRow | None:
        rows = await self._database.read(select(template_builds).where(template_builds.c.build_id == build_id))
        return self._to_build(rows[0]) if rows else None

    async def builds(self, template_id: str) -> list[BuildRow]:
        """Newest first."""
        statement = select(template_builds).where(template_builds.c.template_id == template_id)
        rows = await self._database.read(statement.order_by(template_builds.c.created_at.desc()))
        return [self._to_build(row) for row in rows]

    async def builds_of_team(self, team_id: str) -> dict[str, list[BuildRow]]:
        """By the template's id, each newest first; those without a build are not there."""
        statement = select(template_builds).join(templates).where(templates.c.team_id == team_id)
        found: dict[str, list[BuildRow]] = {}
        for row in await self._database.survey(statement.order_by(template_builds.c.created_at.desc())):
            found.setdefault(row["template_id"], []).append(self._to_build(row))
        return found

    async def images_of_team(self, team_id: str) -> set[str]:
        """That its builds name."""
        statement = select(template_builds.c.images).join(templates).where(templates.c.team_id == team_id)
        return {image_id for row in await self._database.survey(statement) for image_id in row["images"]}

    async def all_builds(self) -> list[BuildRow]:
        """Of every team, for what looks at them all."""
        return [self._to_build(row) for row in await self._database.survey(select(template_builds))]

    async def begin_build(self, build_id: str, at: datetime) -> bool:
        """From WAITING to BUILDING. False: it has been begun before, or is gone."""
        statement = update(template_builds).where(
            template_builds.c.build_id == build_id, template_builds.c.status == BuildStatus.WAITING.value
        )
        values = {"status": BuildStatus.BUILDING.value, "updated_at": at}
        return bool(await self._database.write(statement.values(values)))

    async def change_build(self, build_id: str, **changes: Any) -> bool:
        """Sets columns. False: there is no such build."""
        if "settings" in changes:
            changes["settings"] = self._closed(changes["settings"])
        statement = update(template_builds).where(template_builds.c.build_id == build_id)
        return bool(await self._database.write(statement.values(**changes)))

    async def fail_unfinished(self, error: str, at: datetime) -> int:
        """Every build that says it is being made. Returns how many."""
        statement = update(template_builds).where(template_builds.c.status == BuildStatus.BUILDING.value)
        values = {"status": BuildStatus.ERROR.value, "error": error, "updated_at": at, "finished_at": at}
        return await self._database.write(statement.values(values))

    async def remove_builds(self, build_ids: Sequence[str]) -> int:
        """With their tags."""
        return await self._database.write(delete(template_builds).where(template_builds.c.build_id.in_(build_ids)))

    def _values(self, build: BuildRow) -> dict[str, Any]:
        return _build_values(build) | {"settings": self._closed(build.settings) or None}

    def _to_build(self, row: RowMapping) -> BuildRow:
        settings = row["settings"] or {}
        if "env" in settings:
            settings = {**settings, "env": dict(self._seal.open_map(settings["env"]))}
        return replace(_to_build(row), settings=settings)

    def _closed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What its sandboxes start with may hold secrets: a snapshot has its sandbox's environment."""
        return {**settings, "env": self._seal.close_map(settings["env"])} if "env" in settings else dict(settings)

    # Tags

    async def tags(self, template_id: str) -> list[TagRow]:
        """By name."""
        statement = select(template_tags).where(template_tags.c.template_id == template_id)
        return [TagRow(**row) for row in await self._database.read(statement.order_by(template_tags.c.tag))]

    async def tags_of_team(self, team_id: str) -> dict[str, list[TagRow]]:
        """By the template's id; those without a tag are not there."""
        statement = select(template_tags).join(templates).where(templates.c.team_id == team_id)
        found: dict[str, list[TagRow]] = {}
        for row in await self._database.survey(statement):
            found.setdefault(row["template_id"], []).append(TagRow(**row))
        return found

    async def assign_tags(self, template_id: str, build_id: str, tags: Sequence[str], at: datetime) -> None:
        """They name this build from now on, all or none. Raises Conflict: the build is gone."""
        rows = [{"template_id": template_id, "tag": tag, "build_id": build_id, "created_at": at} for tag in tags]

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")
            try:
                mine = template_tags.c.template_id == template_id
                connection.execute(delete(template_tags).where(mine, template_tags.c.tag.in_(tags)))
                connection.execute(insert(template_tags), rows)
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

        try:
            await self._database.run(work)
        except IntegrityError as error:
            raise Conflict("the build was deleted meanwhile") from error

    async def remove_tags(self, template_id: str, tags: Sequence[str]) -> int:
        """Returns how many there were."""
        mine = template_tags.c.template_id == template_id
        return await self._database.write(delete(template_tags).where(mine, template_tags.c.tag.in_(tags)))


def _build_values(build: BuildRow) -> dict[str, Any]:
    return {
        "build_id": build.build_id,
        "template_id": build.template_id,
        "status": build.status.value,
        "tags": list(build.tags),
        "cpu_count": build.limits.cpu_count,
        "memory_mib": build.limits.memory_mib,
        "disk_mib": build.limits.disk_mib,
        "created_at": build.created_at,
        "updated_at": build.updated_at,
        "images": list(build.images),
        "finished_at": build.finished_at,
        "node_id": build.node_id or None,
    }


def _to_build(row: RowMapping) -> BuildRow:
    return BuildRow(
        build_id=row["build_id"],
        template_id=row["template_id"],
        status=BuildStatus(row["status"]),
        tags=tuple(row["tags"]),
        limits=Limits(cpu_count=row["cpu_count"], memory_mib=row["memory_mib"], disk_mib=row["disk_mib"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        finished_at=row["finished_at"],
        error=row["error"] or "",
        error_step=row["error_step"] or "",
        node_id=row["node_id"] or "",
        images=tuple(row["images"]),
    )
