"""What this machine has for sandboxes, from its kernel: read once when a server starts; and what is used of it."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

import atoll
from atoll.model.capacity import Machine
from atoll.model.seams import NodeMachine

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


class MachineReading:
    """`now` with each heartbeat. `place`: somewhere on the file system of sandboxes."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._processor = _processor()
        self._last = (0, 0)

    def now(self) -> NodeMachine:
        """Of the whole machine; the processors since it was asked last."""
        total, idle = _processor_ticks()
        before, self._last = self._last, (total, idle)
        spent = max(1, total - before[0])
        memory = _meminfo()
        size = used = 0
        with contextlib.suppress(OSError):
            space = os.statvfs(self._place)
            size, used = space.f_blocks * space.f_frsize, (space.f_blocks - space.f_bfree) * space.f_frsize
        return NodeMachine(
            version=atoll.__version__,
            architecture=platform.machine(),
            processor=self._processor,
            cpu_count=os.cpu_count() or 1,
            cpu_used_pct=round(100 * (1 - min(1.0, (idle - before[1]) / spent)), 1),
            memory_mib=memory.get("MemTotal", 0) >> 10,
            memory_used_mib=(memory.get("MemTotal", 0) - memory.get("MemAvailable", 0)) >> 10,
            disk_mib=size >> 20,
            disk_used_mib=used >> 20,
        )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _processor_ticks() -> tuple[int, int]:
    """All, and idle ones, since the machine was started."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = [int(one) for one in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]
    return 0, 0


def _meminfo() -> dict[str, int]:
    """In KiB."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = (line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return {name: int(value.split()[0]) for name, _, value in lines}
    return {}


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
