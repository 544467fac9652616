"""Templates: lists, one with its builds, aliases."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from atoll.model.sandbox import ENVD_VERSION
from atoll.model.template import Template as TemplateModel
from atoll.wire.rest.base import Out

BuildStatus = Literal["waiting", "building", "ready", "error"]


class Template(BaseModel):
    """GET /templates. `createdBy` and `lastSpawnedAt` are required and may be null, so nulls are kept."""

    template_id: str = Field(serialization_alias="templateID")
    build_id: str = Field(serialization_alias="buildID")
    cpu_count: int = Field(serialization_alias="cpuCount")
    memory_mb: int = Field(serialization_alias="memoryMB")
    disk_size_mb: int = Field(serialization_alias="diskSizeMB")
    public: bool = True
    aliases: list[str]
    names: list[str]
    created_at: datetime = Field(serialization_alias="createdAt")
    updated_at: datetime = Field(serialization_alias="updatedAt")
    created_by: None = Field(default=None, serialization_alias="createdBy")
    last_spawned_at: datetime | None = Field(default=None, serialization_alias="lastSpawnedAt")
    spawn_count: int = Field(default=0, serialization_alias="spawnCount")
    build_count: int = Field(default=1, serialization_alias="buildCount")
    envd_version: str = Field(default=ENVD_VERSION, serialization_alias="envdVersion")
    build_status: BuildStatus = Field(default="ready", serialization_alias="buildStatus")


class TemplateBuild(BaseModel):
    """One build of a template."""

    build_id: str = Field(serialization_alias="buildID")
    status: BuildStatus = "ready"
    created_at: datetime = Field(serialization_alias="createdAt")
    updated_at: datetime = Field(serialization_alias="updatedAt")
    finished_at: datetime | None = Field(default=None, serialization_alias="finishedAt")
    cpu_count: int = Field(serialization_alias="cpuCount")
    memory_mb: int = Field(serialization_alias="memoryMB")
    disk_size_mb: int = Field(serialization_alias="diskSizeMB")
    envd_version: str = Field(default=ENVD_VERSION, serialization_alias="envdVersion")


class TemplateWithBuilds(BaseModel):
    """GET /templates/{id}."""

    template_id: str = Field(serialization_alias="templateID")
    public: bool = True
    aliases: list[str]
    names: list[str]
    created_at: datetime = Field(serialization_alias="createdAt")
    updated_at: datetime = Field(serialization_alias="updatedAt")
    last_spawned_at: datetime | None = Field(default=None, serialization_alias="lastSpawnedAt")
    spawn_count: int = Field(default=0, serialization_alias="spawnCount")
    builds: list[TemplateBuild]


class TemplateAlias(Out):
    """GET /templates/aliases/{alias}."""

    template_id: str = Field(serialization_alias="templateID")
    public: bool = True


def template(one: TemplateModel) -> Template:
    """One of a list of templates."""
    return Template(
        template_id=one.template_id,
        build_id=one.build_id,
        cpu_count=one.limits.cpu_count,
        memory_mb=one.limits.memory_mib,
        disk_size_mb=one.limits.disk_mib,
        aliases=list(one.names),
        names=list(one.names),
        created_at=one.created_at,
        updated_at=one.created_at,
    )


def template_with_builds(one: TemplateModel) -> TemplateWithBuilds:
    """A template and the one build of it that is on disk."""
    build = TemplateBuild(
        build_id=one.build_id,
        created_at=one.created_at,
        updated_at=one.created_at,
        finished_at=one.created_at,
        cpu_count=one.limits.cpu_count,
        memory_mb=one.limits.memory_mib,
        disk_size_mb=one.limits.disk_mib,
    )
    return TemplateWithBuilds(
        template_id=one.template_id,
        aliases=list(one.names),
        names=list(one.names),
        created_at=one.created_at,
        updated_at=one.created_at,
        builds=[build],
    )
