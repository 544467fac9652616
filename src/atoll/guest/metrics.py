"""`GET /metrics`: what the sandbox uses, as E2B's envd says it. Numbers come from the sandbox's own view.

Totals are the sandbox's limits, never the machine's: a sandbox does not see its host's size. Use is read from the
sandbox's cgroup where it can see one, else summed over the processes that it can see.
"""

from __future__ import annotations

import os
import time
from typing import Any

from atoll.guest.state import GuestState

_MIB = 1024 * 1024
_TICKS = os.sysconf("SC_CLK_TCK")
_CGROUP = ("/sys/fs/cgroup", "/sys/fs/cgroup/memory")


class Metrics:
    """Keeps the last CPU reading: the percentage is the mean since the call before (at first: since the start)."""

    def __init__(self, state: GuestState) -> None:
        self._state = state
        self._last = (state.started_at, 0.0)

    def read(self) -> dict[str, Any]:
        """One reading. Never raises: what cannot be read is 0."""
        limits = self._state.limits
        total = limits.memory_mib * _MIB
        used, cache = _memory()
        used = min(used, total)
        disk_used, disk_total = _disk(limits.disk_mib * _MIB)
        return {
            "ts": int(time.time()),
            "cpu_count": limits.cpu_count,
            "cpu_used_pct": self._cpu_used_pct(limits.cpu_count),
            "mem_total": total,
            "mem_used": used,
            "mem_cache": cache,
            "mem_total_mib": total // _MIB,
            "mem_used_mib": used // _MIB,
            "disk_used": disk_used,
            "disk_total": disk_total,
        }

    def _cpu_used_pct(self, cpu_count: int) -> float:
        """Of one CPU 100, of two busy ones 100 too: the share of what the sandbox may use, as envd reports it."""
        now, before = time.monotonic(), self._last
        seconds = cpu_of_processes()
        self._last = (now, seconds)
        elapsed = now - before[0]
        if elapsed <= 0:
            return 0.0
        share = (seconds - before[1]) / elapsed / max(1, cpu_count) * 100
        return round(min(100.0, max(0.0, share)), 2)


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(65536).decode("ascii", "replace")
    except OSError:
        return ""


def _memory() -> tuple[int, int]:
    """Used (without page cache) and page cache, in bytes: from the cgroup, else summed over the visible processes."""
    for usage, stat, cache_name in (
        ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "file"),
        ("/sys/fs/cgroup/memory/memory.usage_in_bytes", "/sys/fs/cgroup/memory/memory.stat", "total_cache"),
    ):
        text = _read(usage).strip()
        if text.isdigit():
            fields = dict(line.split()[:2] for line in _read(stat).splitlines() if len(line.split()) == 2)
            cache = int(fields.get(cache_name, "0"))
            return max(0, int(text) - cache), cache
    return memory_of_processes()


def memory_of_processes() -> tuple[int, int]:
    """Used bytes, summed over the visible processes; nobody knows their page cache."""
    page = os.sysconf("SC_PAGE_SIZE")
    resident = 0
    for pid in _pids():
        fields_of = _read(f"/proc/{pid}/statm").split()
        if len(fields_of) >= 3:
            resident += max(0, int(fields_of[1]) - int(fields_of[2])) * page
    return resident, 0


def cpu_of_processes() -> float:
    """Seconds of CPU time of the visible processes and of the children that they have reaped."""
    ticks = 0
    for pid in _pids():
        data = _read(f"/proc/{pid}/stat")
        fields = data[data.rfind(")") + 2 :].split()
        if len(fields) > 15:
            ticks += int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])
    return ticks / _TICKS


def _pids() -> list[str]:
    try:
        return [entry for entry in os.listdir("/proc") if entry.isdigit()]
    except OSError:
        return []


def _disk(limit: int) -> tuple[int, int]:
    """Used and total bytes of the root file system."""
    try:
        found = os.statvfs("/")
    except OSError:
        return 0, limit
    total = found.f_blocks * found.f_frsize
    return (found.f_blocks - found.f_bfree) * found.f_frsize, total
