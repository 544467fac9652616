"""Sandboxes: create, connect, list, detail, timeouts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from atoll.model.lifecycle import shown_state
from atoll.model.sandbox import ENVD_VERSION, PauseMode, SandboxRecord, SandboxState
from atoll.wire.rest.base import In, Out
from atoll.wire.rest.network import NetworkConfig, NetworkDetail, network_detail

CLIENT_ID = "atoll"
"""`clientID`: deprecated in E2B and required in its answers; one constant, since nothing depends on it."""

V1_TIMEOUT_S = 15
V2_TIMEOUT_S = 300

Timeout = Annotated[int, Field(ge=0, le=2**31 - 1)]


class AutoResume(In):
    enabled: bool = False


class VolumeMount(In):
    name: str
    path: str


class NewSandboxV2(In):
    """POST /v2/sandboxes."""

    template_id: Annotated[str, Field(min_length=1, max_length=512)] = Field(validation_alias="templateID")
    timeout: Timeout | None = None
    auto_pause: bool | None = Field(default=None, validation_alias="autoPause")
    auto_pause_memory: bool | None = Field(default=None, validation_alias="autoPauseMemory")
    auto_resume: AutoResume | None = Field(default=None, validation_alias="autoResume")
    allow_internet_access: bool | None = None
    network: NetworkConfig | None = None
    iam: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    env_vars: dict[str, str] | None = Field(default=None, validation_alias="envVars")
    mcp: dict[str, Any] | None = None
    """Nothing for the server: the SDKs start the gateway by a command in the sandbox."""
    volume_mounts: list[VolumeMount] | None = Field(default=None, validation_alias="volumeMounts")


class NewSandbox(NewSandboxV2):
    """POST /sandboxes: v1 asks for a secure sandbox, v2 always gets one."""

    secure: bool | None = None


class ConnectSandbox(In):
    """POST /sandboxes/{id}/connect. `memory` chooses how a paused sandbox comes back."""

    timeout: Timeout
    memory: bool | None = None


class ConnectSandboxV2(In):
    """POST /v2/sandboxes/{id}/connect. `memory` chooses how a paused sandbox comes back."""

    timeout: Timeout | None = None
    memory: bool | None = None


class ResumedSandbox(In):
    """POST /sandboxes/{id}/resume, as older SDKs ask."""

    timeout: Timeout | None = None
    auto_pause: bool | None = Field(default=None, validation_alias="autoPause")
    memory: bool | None = None


class PauseRequest(In):
    """POST /sandboxes/{id}/pause."""

    memory: bool | None = None
    require_healthy_guest: bool | None = Field(default=None, validation_alias="requireHealthyGuest")


class TimeoutRequest(In):
    """POST /sandboxes/{id}/timeout."""

    timeout: Timeout


class RefreshRequest(In):
    """POST /sandboxes/{id}/refreshes. Seconds."""

    duration: Annotated[int, Field(ge=0, le=3600)] | None = None


class Sandbox(Out):
    """The answer to create and connect."""

    template_id: str = Field(serialization_alias="templateID")
    sandbox_id: str = Field(serialization_alias="sandboxID")
    alias: str | None = None
    client_id: str = Field(default=CLIENT_ID, serialization_alias="clientID")
    envd_version: str = Field(default=ENVD_VERSION, serialization_alias="envdVersion")
    envd_access_token: str | None = Field(default=None, serialization_alias="envdAccessToken")
    traffic_access_token: str | None = Field(default=None, serialization_alias="trafficAccessToken")
    domain: str | None = None
    tier: str = ""
    """Atoll's own: the isolation tier."""
    limits_not_enforced: list[str] = Field(default_factory=list, serialization_alias="limitsNotEnforced")
    """Atoll's own: of cpu, memory, pids and disk what this machine does not hold the sandbox to."""


class MountedVolume(Out):
    """A volume of the sandbox, and where it lies inside."""

    name: str
    path: str


class ListedSandbox(Out):
    """One of a list."""

    template_id: str = Field(serialization_alias="templateID")
    sandbox_id: str = Field(serialization_alias="sandboxID")
    alias: str | None = None
    client_id: str = Field(default=CLIENT_ID, serialization_alias="clientID")
    started_at: datetime = Field(serialization_alias="startedAt")
    end_at: datetime = Field(serialization_alias="endAt")
    cpu_count: int = Field(serialization_alias="cpuCount")
    memory_mb: int = Field(serialization_alias="memoryMB")
    disk_size_mb: int = Field(serialization_alias="diskSizeMB")
    metadata: dict[str, str]
    volume_mounts: list[MountedVolume] = Field(default_factory=list, serialization_alias="volumeMounts")
    state: Literal["running", "paused"]
    envd_version: str = Field(default=ENVD_VERSION, serialization_alias="envdVersion")
    tier: str = ""
    """Atoll's own: the isolation tier."""


class Lifecycle(Out):
    auto_resume: bool = Field(default=False, serialization_alias="autoResume")
    on_timeout: Literal["kill", "pause"] = Field(default="kill", serialization_alias="onTimeout")


class SandboxDetail(ListedSandbox):
    """GET /sandboxes/{id}."""

    envd_access_token: str | None = Field(default=None, serialization_alias="envdAccessToken")
    domain: str | None = None
    allow_internet_access: bool = Field(default=True, serialization_alias="allowInternetAccess")
    network: NetworkDetail
    lifecycle: Lifecycle
    pause_mode: Literal["full", "filesystem"] | None = Field(default=None, serialization_alias="pauseMode")
    envd_unresponsive_at_pause: bool | None = Field(default=None, serialization_alias="envdUnresponsiveAtPause")
    limits_not_enforced: list[str] = Field(default_factory=list, serialization_alias="limitsNotEnforced")
    """Atoll's own: see Sandbox."""


def sandbox(record: SandboxRecord, domain: str | None, unenforced: Sequence[str] = ()) -> Sandbox:
    """The answer to create and connect."""
    return Sandbox(
        template_id=record.template_id,
        sandbox_id=record.sandbox_id,
        alias=record.template_alias,
        envd_access_token=record.envd_access_token,
        traffic_access_token=record.traffic_access_token,
        domain=domain,
        tier=record.tier,
        limits_not_enforced=list(unenforced),
    )


def listed(record: SandboxRecord) -> ListedSandbox:
    """One of a list; the record is running or paused."""
    return ListedSandbox(**_common(record))


def detail(record: SandboxRecord, domain: str | None, unenforced: Sequence[str] = ()) -> SandboxDetail:
    """All about one."""
    is_paused = record.state is SandboxState.PAUSED
    return SandboxDetail(
        **_common(record),
        envd_access_token=record.envd_access_token,
        domain=domain,
        allow_internet_access=record.network.allow_internet,
        network=network_detail(record),
        lifecycle=Lifecycle(auto_resume=record.auto_resume, on_timeout="pause" if record.auto_pause else "kill"),
        pause_mode=_PAUSE_MODES[record.pause_mode] if record.pause_mode is not None and is_paused else None,
        envd_unresponsive_at_pause=not record.guest_answered if is_paused else None,
        limits_not_enforced=list(unenforced),
    )


_PAUSE_MODES: dict[PauseMode, Literal["full", "filesystem"]] = {
    PauseMode.MEMORY: "full",
    PauseMode.FILESYSTEM: "filesystem",
}


def _common(record: SandboxRecord) -> dict[str, Any]:
    return {
        "template_id": record.template_id,
        "sandbox_id": record.sandbox_id,
        "alias": record.template_alias,
        "started_at": record.started_at,
        "end_at": record.end_at,
        "cpu_count": record.limits.cpu_count,
        "memory_mb": record.limits.memory_mib,
        "disk_size_mb": record.limits.disk_mib,
        "metadata": dict(record.metadata),
        "volume_mounts": [MountedVolume(name=mount.name, path=mount.path) for mount in record.volumes],
        "tier": record.tier,
        "state": shown_state(record).value,
    }
