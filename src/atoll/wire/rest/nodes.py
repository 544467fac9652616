"""Nodes in the form of E2B's control plane. What this platform has no word for is empty or 0."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from atoll.wire.rest.base import In, Out, Text


class NodeStatus(StrEnum):
    """E2B's words. `connecting`: it has not registered yet; `unhealthy`: it is silent. `standby` is never shown."""

    READY = "ready"
    DRAINING = "draining"
    CONNECTING = "connecting"
    UNHEALTHY = "unhealthy"
    STANDBY = "standby"


class NodeStatusChange(In):
    """POST /nodes/{id}."""

    status: NodeStatus


class NewNode(In):
    """PUT /nodes/{id}: Atoll's own."""

    host: Text
    port: int = Field(ge=1, le=65535)


class DiskMetrics(Out):
    """One file system; that of the data directory."""

    mount_point: str = Field(default="", serialization_alias="mountPoint")
    device: str = ""
    filesystem_type: str = Field(default="", serialization_alias="filesystemType")
    used_bytes: int = Field(serialization_alias="usedBytes")
    total_bytes: int = Field(serialization_alias="totalBytes")


class NodeMetrics(Out):
    """`allocated…`: what the limits of its sandboxes add up to."""

    allocated_cpu: int = Field(serialization_alias="allocatedCPU")
    allocated_memory: int = Field(serialization_alias="allocatedMemoryBytes")
    cpu_percent: int = Field(serialization_alias="cpuPercent")
    cpu_count: int = Field(serialization_alias="cpuCount")
    memory_used: int = Field(serialization_alias="memoryUsedBytes")
    memory_total: int = Field(serialization_alias="memoryTotalBytes")
    disks: list[DiskMetrics]
    huge_pages_total: int = Field(default=0, serialization_alias="hugePagesTotal")
    huge_pages_used: int = Field(default=0, serialization_alias="hugePagesUsed")
    huge_pages_reserved: int = Field(default=0, serialization_alias="hugePagesReserved")
    huge_page_size: int = Field(default=0, serialization_alias="hugePageSizeBytes")


class MachineInfo(Out):
    """Its processor."""

    cpu_family: str = Field(default="", serialization_alias="cpuFamily")
    cpu_model: str = Field(default="", serialization_alias="cpuModel")
    cpu_model_name: str = Field(serialization_alias="cpuModelName")
    cpu_architecture: str = Field(serialization_alias="cpuArchitecture")


class NodeOut(Out):
    """E2B's `Node` and `NodeDetail` in one. `load` is Atoll's own: the load average per processor."""

    node_id: str = Field(serialization_alias="id")
    service_instance_id: str = Field(serialization_alias="serviceInstanceID")
    cluster_id: str = Field(default="00000000-0000-0000-0000-000000000000", serialization_alias="clusterID")
    version: str
    commit: str = ""
    status: NodeStatus
    status_changed_at: datetime = Field(serialization_alias="statusChangedAt")
    sandbox_count: int = Field(serialization_alias="sandboxCount")
    sandbox_starting_count: int = Field(serialization_alias="sandboxStartingCount")
    create_successes: int = Field(serialization_alias="createSuccesses")
    create_fails: int = Field(serialization_alias="createFails")
    metrics: NodeMetrics
    machine_info: MachineInfo = Field(serialization_alias="machineInfo")
    load: float


class NodeImageOut(Out):
    """An image that a node has: Atoll's own. `size_bytes`: what it adds, on its disk."""

    image_id: str = Field(serialization_alias="imageID")
    size_bytes: int = Field(serialization_alias="sizeBytes")
    layers: int
    has_memory: bool = Field(serialization_alias="hasMemory")
