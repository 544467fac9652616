"""The bodies of E2B's control-plane REST, as pydantic models: field names are E2B's, through aliases.

What comes in tolerates unknown fields (newer SDKs send more) and null for anything optional. What goes out is built by
the functions at the end and leaves with its aliases and without empty fields. No decision is taken here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atoll.model.logs import LogEntry as LogEntryModel
from atoll.model.network import HIDDEN, NetworkConnection
from atoll.model.sandbox import ENVD_VERSION, SandboxRecord, SandboxState, SandboxStats
from atoll.model.template import Template as TemplateModel

CLIENT_ID = "atoll"
"""`clientID`: deprecated in E2B and required in its answers; one constant, since nothing is told apart by it."""

V1_TIMEOUT_S = 15
V2_TIMEOUT_S = 300

Timeout = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = Annotated[str, Field(max_length=1024)]


class _In(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Out(BaseModel):
    def json_bytes(self) -> bytes:
        """As it goes over the wire."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()


# Requests


class AutoResume(_In):
    enabled: bool = False


class VolumeMount(_In):
    name: str
    path: str


class _Strict(BaseModel):
    """Keeps what it does not know, so that it can be refused: half a policy would be a hole in it."""

    model_config = ConfigDict(extra="allow")


class Transform(_Strict):
    headers: dict[str, str] | None = None


class NetworkRule(_Strict):
    """What is done to requests for the host that it stands under."""

    transform: Transform | None = None


class NetworkEgress(_Strict):
    """What create and update say alike about what a sandbox may reach. `egressProxy` is only looked at to refuse it."""

    allow_out: list[Text] | None = Field(default=None, validation_alias="allowOut")
    deny_out: list[Text] | None = Field(default=None, validation_alias="denyOut")
    dns_servers: list[Text] | None = Field(default=None, validation_alias="dnsServers")
    egress_proxy: dict[str, Any] | None = Field(default=None, validation_alias="egressProxy")
    rules: dict[Text, list[NetworkRule] | None] | None = None


class NetworkConfig(NetworkEgress):
    """Of a create."""

    allow_public_traffic: bool | None = Field(default=None, validation_alias="allowPublicTraffic")
    mask_request_host: Annotated[str, Field(max_length=255)] | None = Field(
        default=None, validation_alias="maskRequestHost"
    )
    https_ports: list[int] | None = Field(default=None, validation_alias="httpsPorts")


class NetworkUpdate(NetworkEgress):
    """PUT /sandboxes/{id}/network. What only a create can say is looked at to refuse it."""

    allow_internet_access: bool | None = None
    allow_public_traffic: bool | None = Field(default=None, validation_alias="allowPublicTraffic")
    mask_request_host: str | None = Field(default=None, validation_alias="maskRequestHost")
    https_ports: list[int] | None = Field(default=None, validation_alias="httpsPorts")


class NewSandboxV2(_In):
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
    volume_mounts: list[VolumeMount] | None = Field(default=None, validation_alias="volumeMounts")


class NewSandbox(NewSandboxV2):
    """POST /sandboxes: v1 asks for a secure sandbox, v2 always gets one."""

    secure: bool | None = None


class ConnectSandbox(_In):
    """POST /sandboxes/{id}/connect."""

    timeout: Timeout


class ConnectSandboxV2(_In):
    """POST /v2/sandboxes/{id}/connect. `memory` chooses how a paused sandbox comes back."""

    timeout: Timeout | None = None
    memory: bool | None = None


class ResumedSandbox(_In):
    """POST /sandboxes/{id}/resume, as older SDKs ask. Nothing is paused here: only what is refused is read."""

    auto_pause: bool | None = Field(default=None, validation_alias="autoPause")


class TimeoutRequest(_In):
    """POST /sandboxes/{id}/timeout."""

    timeout: Timeout


class RefreshRequest(_In):
    """POST /sandboxes/{id}/refreshes. Seconds."""

    duration: Annotated[int, Field(ge=0, le=3600)] | None = None


# Answers


class Sandbox(_Out):
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


class ListedSandbox(_Out):
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
    state: Literal["running", "paused"]
    envd_version: str = Field(default=ENVD_VERSION, serialization_alias="envdVersion")
    tier: str = ""
    """Atoll's own: the isolation tier."""


class Lifecycle(_Out):
    auto_resume: bool = Field(default=False, serialization_alias="autoResume")
    on_timeout: Literal["kill", "pause"] = Field(default="kill", serialization_alias="onTimeout")


class NetworkDetail(_Out):
    allow_public_traffic: bool = Field(default=True, serialization_alias="allowPublicTraffic")
    allow_out: list[str] | None = Field(default=None, serialization_alias="allowOut")
    deny_out: list[str] | None = Field(default=None, serialization_alias="denyOut")
    dns_servers: list[str] | None = Field(default=None, serialization_alias="dnsServers")
    rules: dict[str, list[dict[str, Any]]] | None = None


class SandboxDetail(ListedSandbox):
    """GET /sandboxes/{id}."""

    envd_access_token: str | None = Field(default=None, serialization_alias="envdAccessToken")
    domain: str | None = None
    allow_internet_access: bool = Field(default=True, serialization_alias="allowInternetAccess")
    network: NetworkDetail
    lifecycle: Lifecycle
    limits_not_enforced: list[str] = Field(default_factory=list, serialization_alias="limitsNotEnforced")
    """Atoll's own: see Sandbox."""


class SandboxMetric(_Out):
    """One reading. Bytes; `cpuUsedPct` is percent of one CPU. E2B has no form for "unknown": it is 0."""

    timestamp: datetime
    timestamp_unix: int = Field(serialization_alias="timestampUnix")
    cpu_count: int = Field(serialization_alias="cpuCount")
    cpu_used_pct: float = Field(serialization_alias="cpuUsedPct")
    mem_used: int = Field(serialization_alias="memUsed")
    mem_total: int = Field(serialization_alias="memTotal")
    mem_cache: int = Field(serialization_alias="memCache")
    disk_used: int = Field(serialization_alias="diskUsed")
    disk_total: int = Field(serialization_alias="diskTotal")


class SandboxesWithMetrics(_Out):
    """GET /sandboxes/metrics."""

    sandboxes: dict[str, SandboxMetric]


class LogLine(_Out):
    timestamp: datetime
    line: str


class LogEntry(_Out):
    timestamp: datetime
    level: str
    message: str
    fields: dict[str, str]


class SandboxLogs(_Out):
    """GET /sandboxes/{id}/logs."""

    logs: list[LogLine]
    log_entries: list[LogEntry] = Field(serialization_alias="logEntries")


class SandboxLogsV2(_Out):
    """GET /v2/sandboxes/{id}/logs."""

    logs: list[LogEntry]


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
    build_status: Literal["waiting", "building", "ready", "error"] = Field(
        default="ready", serialization_alias="buildStatus"
    )


class TemplateBuild(BaseModel):
    """One build of a template."""

    build_id: str = Field(serialization_alias="buildID")
    status: Literal["waiting", "building", "ready", "error"] = "ready"
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


class TemplateAlias(_Out):
    """GET /templates/aliases/{alias}."""

    template_id: str = Field(serialization_alias="templateID")
    public: bool = True


class Team(_Out):
    """GET /teams."""

    team_id: str = Field(serialization_alias="teamID")
    name: str
    api_key: str = Field(serialization_alias="apiKey")
    is_default: bool = Field(default=True, serialization_alias="isDefault")


class TeamMetric(_Out):
    """A stretch of time of GET /teams/{id}/metrics; sandboxes started per second."""

    timestamp: datetime
    timestamp_unix: int = Field(serialization_alias="timestampUnix")
    concurrent_sandboxes: int = Field(serialization_alias="concurrentSandboxes")
    sandbox_start_rate: float = Field(serialization_alias="sandboxStartRate")


class MaxTeamMetric(_Out):
    """GET /teams/{id}/metrics/max."""

    timestamp: datetime
    timestamp_unix: int = Field(serialization_alias="timestampUnix")
    value: float


class NewKey(_In):
    """POST /api-keys, PATCH /api-keys/{id}."""

    name: Annotated[str, Field(min_length=1, max_length=255)]


class KeyMask(BaseModel):
    """What of a key may be shown again."""

    prefix: str
    value_length: int = Field(serialization_alias="valueLength")
    masked_value_prefix: str = Field(serialization_alias="maskedValuePrefix")
    masked_value_suffix: str = Field(serialization_alias="maskedValueSuffix")


class TeamKey(BaseModel):
    """GET /api-keys. `createdBy` and `lastUsed` may be null, so nulls are kept."""

    id: str
    name: str
    mask: KeyMask
    created_at: datetime = Field(serialization_alias="createdAt")
    created_by: None = Field(default=None, serialization_alias="createdBy")
    last_used: datetime | None = Field(default=None, serialization_alias="lastUsed")


class CreatedTeamKey(TeamKey):
    """POST /api-keys: the only time that the key itself is told."""

    key: str


class Error(_Out):
    """Every error's body; made by `wire.errors`."""

    code: int
    message: str
    error_code: str | None = None


# From the model


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
    return SandboxDetail(
        **_common(record),
        envd_access_token=record.envd_access_token,
        domain=domain,
        allow_internet_access=record.network.allow_internet,
        network=_network(record),
        lifecycle=Lifecycle(),
        limits_not_enforced=list(unenforced),
    )


def _network(record: SandboxRecord) -> NetworkDetail:
    network = record.network
    return NetworkDetail(
        allow_public_traffic=record.traffic_access_token is None,
        allow_out=list(network.allow_out) or None,
        deny_out=list(network.deny_out) or None,
        dns_servers=list(network.dns_servers) if network.dns_servers is not None else None,
        rules={
            host: [{"transform": {"headers": dict.fromkeys(one, HIDDEN)}} for one in sets]
            for host, sets in network.rules.items()
        }
        or None,
    )


class Connection(_Out):
    """GET /sandboxes/{id}/network/connections. Atoll's own."""

    timestamp: datetime
    protocol: Literal["tcp", "dns"]
    source_address: str = Field(serialization_alias="sourceAddress")
    source_port: int = Field(serialization_alias="sourcePort")
    destination_address: str = Field(serialization_alias="destinationAddress")
    destination_port: int = Field(serialization_alias="destinationPort")
    name: str
    verdict: str
    allowed: bool
    bytes_out: int = Field(serialization_alias="bytesOut")
    bytes_in: int = Field(serialization_alias="bytesIn")
    rewritten: bool
    closed_at: datetime | None = Field(default=None, serialization_alias="closedAt")


def connection(one: NetworkConnection) -> Connection:
    """One of a list."""
    return Connection(
        timestamp=one.time,
        protocol="dns" if one.protocol == "dns" else "tcp",
        source_address=one.source_address,
        source_port=one.source_port,
        destination_address=one.address,
        destination_port=one.port,
        name=one.name,
        verdict=one.verdict,
        allowed=one.allowed,
        bytes_out=one.bytes_out,
        bytes_in=one.bytes_in,
        rewritten=one.rewritten,
        closed_at=one.closed_at,
    )


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
        "tier": record.tier,
        "state": "paused" if record.state is SandboxState.PAUSED else "running",
    }


def metric(stats: SandboxStats, cpu_count: int, at: datetime) -> SandboxMetric:
    """A reading taken at `at`."""
    return SandboxMetric(
        timestamp=at,
        timestamp_unix=int(at.timestamp()),
        cpu_count=cpu_count,
        cpu_used_pct=round(stats.cpu_used_pct or 0.0, 2),
        mem_used=stats.memory_used or 0,
        mem_total=stats.memory_total,
        mem_cache=stats.memory_cache or 0,
        disk_used=stats.disk_used or 0,
        disk_total=stats.disk_total,
    )


def log_entry(entry: LogEntryModel) -> LogEntry:
    """One entry."""
    return LogEntry(timestamp=entry.at, level=entry.level.value, message=entry.message, fields=dict(entry.fields))


def logs(entries: Sequence[LogEntryModel]) -> SandboxLogs:
    """v1: each entry twice, for readers of lines and of entries."""
    lines = [
        LogLine(
            timestamp=entry.at,
            line=json.dumps({**entry.fields, "level": entry.level.value, "message": entry.message}, ensure_ascii=False),
        )
        for entry in entries
    ]
    return SandboxLogs(logs=lines, log_entries=[log_entry(entry) for entry in entries])


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
