"""What a group uses in detail, read through descriptors: also by a process that may not open the group's files.

Read-only, of one group. Numbers have one name for both versions of control groups; what a version does not count is
absent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from atoll.isolation.linux.cgroups.groups import Group

_TICKS = os.sysconf("SC_CLK_TCK")
_MAX = 16384

# One name for both: (version 1, where its numbers include the groups within; version 2). Bytes.
_MEMORY = {
    "anonymous": ("total_rss", "anon"),
    "cache": ("total_cache", "file"),
    "shared": ("total_shmem", "shmem"),
    "mapped": ("total_mapped_file", "file_mapped"),
    "dirty": ("total_dirty", "file_dirty"),
    "active_anonymous": ("total_active_anon", "active_anon"),
    "inactive_anonymous": ("total_inactive_anon", "inactive_anon"),
    "active_cache": ("total_active_file", "active_file"),
    "inactive_cache": ("total_inactive_file", "inactive_file"),
    "unevictable": ("total_unevictable", "unevictable"),
    "slab_reclaimable": ("", "slab_reclaimable"),
    "slab_unreclaimable": ("", "slab_unreclaimable"),
    "stacks": ("", "kernel_stack"),
    "page_tables": ("", "pagetables"),
    "faults": ("total_pgfault", "pgfault"),
    "major_faults": ("total_pgmajfault", "pgmajfault"),
}


class Meter:
    """Owns `descriptors` until `close`; a fork's copies are its own to keep or close."""

    def __init__(self, files: Mapping[str, int]) -> None:
        self._files = dict(files)

    @staticmethod
    def of(group: Group) -> Meter:
        """Without a controller there is nothing to read, and nothing in the readings."""
        paths: dict[str, Path] = {}
        if (path := group.v1.get("memory")) is not None:
            paths |= {"usage": path / "memory.usage_in_bytes", "memory1": path / "memory.stat"}
        elif group.v2 is not None and "memory" in group.v2_controllers:
            paths |= {"usage": group.v2 / "memory.current", "memory2": group.v2 / "memory.stat"}
        if (path := group.v1.get("cpuacct")) is not None:
            paths["cpu1"] = path / "cpuacct.stat"
        elif group.v2 is not None:
            paths["cpu2"] = group.v2 / "cpu.stat"
        return Meter(dict(_opened(paths)))

    @property
    def descriptors(self) -> list[int]:
        return list(self._files.values())

    def close(self) -> None:
        """Idempotent."""
        while self._files:
            os.close(self._files.popitem()[1])

    def cpu(self) -> Mapping[str, int]:
        """`user_us` and `system_us` since the group was made. Never raises."""
        table = self._table("cpu1")
        if table:
            return {f"{name}_us": table.get(name, 0) * 1_000_000 // _TICKS for name in ("user", "system")}
        table = self._table("cpu2")
        return {f"{name}_us": table[f"{name}_usec"] for name in ("user", "system") if f"{name}_usec" in table}

    def memory(self) -> Mapping[str, int]:
        """`usage` and the names above, in bytes (faults: their number). Never raises."""
        usage = self._read("usage").strip()
        version = 0 if "memory1" in self._files else 1
        table = self._table(f"memory{version + 1}")
        found = {name: table[names[version]] for name, names in _MEMORY.items() if names[version] in table}
        return {**found, "usage": int(usage)} if usage.isdigit() else {}

    def _read(self, name: str) -> str:
        try:
            return os.pread(self._files[name], _MAX, 0).decode("ascii", "replace")
        except (KeyError, OSError):
            return ""

    def _table(self, name: str) -> dict[str, int]:
        words = self._read(name).split()
        return {key: int(value) for key, value in zip(words[::2], words[1::2], strict=False) if value.isdigit()}


def _opened(paths: Mapping[str, Path]) -> Iterator[tuple[str, int]]:
    for name, path in paths.items():
        with contextlib.suppress(OSError):
            yield name, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
