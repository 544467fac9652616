"""Metrics of sandboxes: `GET …/metrics`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from pydantic import Field

from atoll.model.sandbox import SandboxStats
from atoll.wire.rest.base import Out


class GpuMetric(Out):
    """One GPU of the sandbox, as the host's `nvidia-smi` sees it; bytes and degrees Celsius. Left out: unknown."""

    name: str
    used_pct: float | None = Field(None, serialization_alias="usedPct")
    memory_used: int | None = Field(None, serialization_alias="memUsed")
    memory_total: int | None = Field(None, serialization_alias="memTotal")
    temperature_c: float | None = Field(None, serialization_alias="temperatureC")


class SandboxMetric(Out):
    """One reading. Bytes; `cpuUsedPct` is percent of one CPU. E2B has no form for "unknown": it is 0.

    `gpus` is ours: of the newest reading of a sandbox that has some.
    """

    timestamp: datetime
    timestamp_unix: int = Field(serialization_alias="timestampUnix")
    cpu_count: int = Field(serialization_alias="cpuCount")
    cpu_used_pct: float = Field(serialization_alias="cpuUsedPct")
    mem_used: int = Field(serialization_alias="memUsed")
    mem_total: int = Field(serialization_alias="memTotal")
    mem_cache: int = Field(serialization_alias="memCache")
    disk_used: int = Field(serialization_alias="diskUsed")
    disk_total: int = Field(serialization_alias="diskTotal")
    gpus: list[GpuMetric] | None = None


class SandboxesWithMetrics(Out):
    """GET /sandboxes/metrics."""

    sandboxes: dict[str, SandboxMetric]


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
        gpus=[GpuMetric(**asdict(one)) for one in stats.gpus] or None,
    )
