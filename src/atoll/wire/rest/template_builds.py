"""Bodies of template builds and tags, as E2B's interface has them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from atoll.wire.rest.base import In, Out
from atoll.wire.rest.templates import BuildStatus

LogLevel = Literal["debug", "info", "warn", "error"]
Name = Annotated[str, Field(min_length=1, max_length=400)]
Tags = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=64)]
Command = Annotated[str, Field(max_length=65536)]


class NewBuild(In):
    """POST /v3/templates. `alias` and `teamID` are older names; a key has one team only."""

    name: Name | None = None
    alias: Name | None = None
    tags: Tags | None = None
    cpu_count: int | None = Field(default=None, validation_alias="cpuCount", ge=0, le=1024)
    memory_mb: int | None = Field(default=None, validation_alias="memoryMB", ge=0, le=1 << 30)
    min_free_disk_mb: int | None = Field(default=None, validation_alias="minFreeDiskMb", ge=0)


class NewBuildOut(Out):
    """Its answer, 202."""

    template_id: str = Field(serialization_alias="templateID")
    build_id: str = Field(serialization_alias="buildID")
    public: bool
    names: list[str]
    tags: list[str]
    aliases: list[str]


class StepIn(In):
    """One instruction."""

    type: Annotated[str, Field(max_length=40)]
    args: Annotated[list[str], Field(max_length=2048)] = Field(default_factory=list)
    force: bool | None = None
    files_hash: Annotated[str, Field(max_length=64)] | None = Field(default=None, validation_alias="filesHash")


class RegistryIn(In):
    """Credentials for a registry: a name and a password, or those of a cloud for its own."""

    type: Literal["registry", "aws", "gcp"]
    username: Annotated[str, Field(max_length=1024)] = ""
    password: Annotated[str, Field(max_length=16384)] = ""
    aws_access_key_id: Annotated[str, Field(max_length=256)] = Field(default="", validation_alias="awsAccessKeyId")
    aws_secret_access_key: Annotated[str, Field(max_length=256)] = Field(
        default="", validation_alias="awsSecretAccessKey"
    )
    aws_region: Annotated[str, Field(max_length=40)] = Field(default="", validation_alias="awsRegion")
    service_account_json: Annotated[str, Field(max_length=16384)] = Field(
        default="", validation_alias="serviceAccountJson"
    )

    def as_order(self) -> dict[str, str]:
        """By the client's names."""
        return {
            "type": self.type,
            "username": self.username,
            "password": self.password,
            "awsAccessKeyId": self.aws_access_key_id,
            "awsSecretAccessKey": self.aws_secret_access_key,
            "awsRegion": self.aws_region,
            "serviceAccountJson": self.service_account_json,
        }


class BuildStart(In):
    """POST /v2/templates/{id}/builds/{build}."""

    from_image: Annotated[str, Field(max_length=512)] | None = Field(default=None, validation_alias="fromImage")
    from_template: Name | None = Field(default=None, validation_alias="fromTemplate")
    from_image_registry: RegistryIn | None = Field(default=None, validation_alias="fromImageRegistry")
    force: bool | None = None
    steps: Annotated[list[StepIn], Field(max_length=1024)] = Field(default_factory=list)
    start_cmd: Command | None = Field(default=None, validation_alias="startCmd")
    ready_cmd: Command | None = Field(default=None, validation_alias="readyCmd")


class FileUpload(Out):
    """GET /templates/{id}/files/{hash}, 201."""

    present: bool
    url: str


class BuildLogEntry(Out):
    """One line of a build's log."""

    timestamp: datetime
    level: str
    message: str
    step: str | None = None


class BuildReason(Out):
    """Why a build failed. `step`: "base", a number from 1, or "finalize"."""

    message: str
    step: str | None = None
    log_entries: list[BuildLogEntry] = Field(default_factory=list, serialization_alias="logEntries")


class BuildInfo(Out):
    """GET /templates/{id}/builds/{build}/status."""

    template_id: str = Field(serialization_alias="templateID")
    build_id: str = Field(serialization_alias="buildID")
    status: BuildStatus
    logs: list[str] = Field(default_factory=list)
    log_entries: list[BuildLogEntry] = Field(serialization_alias="logEntries")
    reason: BuildReason | None = None


class BuildLogs(Out):
    """GET /templates/{id}/builds/{build}/logs."""

    logs: list[BuildLogEntry]


class AssignTags(In):
    """POST /templates/tags."""

    target: Name
    tags: Annotated[Tags, Field(min_length=1)]


class AssignedTags(Out):
    """Its answer, 201."""

    tags: list[str]
    build_id: str = Field(serialization_alias="buildID")


class RemoveTags(In):
    """DELETE /templates/tags."""

    name: Name
    tags: Annotated[Tags, Field(min_length=1)]


class Tag(Out):
    """GET /templates/{id}/tags."""

    tag: str
    build_id: str = Field(serialization_alias="buildID")
    created_at: datetime = Field(serialization_alias="createdAt")


class TagCount(Out):
    """GET /templates/{id}/tags/count."""

    total: int


class TagExists(Out):
    """GET /templates/{id}/tags/exists."""

    exists: bool
    normalized_tag: str = Field(serialization_alias="normalizedTag")


class TemplatePatch(In):
    """PATCH /templates/{id}, PATCH /v2/templates/{id}."""

    public: bool | None = None


class PatchedTemplate(Out):
    """Its answer (v2)."""

    names: list[str]
