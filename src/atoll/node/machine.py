"""What this machine has for sandboxes, from its kernel: read once when a server starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from atoll.model.capacity import Machine

_DISK = "disk.img"


def machine_here(data_dir: Path, root: Path = Path("/")) -> Machine:
    """`data_dir` need not exist yet. What a container may use counts, where that is less than the machine has."""
    near = next(path for path in (data_dir, *data_dir.parents) if path.is_dir())
    space = os.statvfs(near)
    free = space.f_bavail * space.f_frsize + _held_by_sandboxes(data_dir)
    groups = root / "sys/fs/cgroup"
    return Machine(
        processors=len(os.sched_getaffinity(0)),
        memory_mib=min([_memory(root), *_numbers(groups / "memory.max", groups / "memory/memory.limit_in_bytes")])
        >> 20,
        pids=min(
            [
                *_numbers(root / "proc/sys/kernel/pid_max", root / "proc/sys/kernel/threads-max"),
                *_numbers(groups / "pids.max", groups / "pids/pids.max"),
            ]
        ),
        disk_size_mib=(space.f_blocks * space.f_frsize) >> 20,
        disk_free_mib=free >> 20,
    )


def _held_by_sandboxes(data_dir: Path) -> int:
    """Bytes. They were free before, and will be."""
    held = 0
    for image in (data_dir / "sandboxes").glob(f"*/{_DISK}"):
        with contextlib.suppress(OSError):
            held += image.stat().st_blocks * 512
    return held


def _memory(root: Path) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/meminfo has no MemTotal line")


def memory_in_use(root: Path = Path("/")) -> float:
    """The share of the machine's memory that nobody else could have, 0 to 1. Raises OSError."""
    found = {}
    for line in (root / "proc/meminfo").read_text().splitlines()[:3]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0])
    return 1 - found["MemAvailable"] / found["MemTotal"]


def _numbers(*paths: Path) -> list[int]:
    """What stands in those that can be read and hold a number (not `max`)."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return found
