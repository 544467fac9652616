"""Inside a gVisor sandbox, before the guest: files that show its size lie over those of gVisor's own /proc and /sys.

gVisor's kernel shows the memory and the processors that it was started with, and /proc/stat counts no processor time.
The files are those of `guest/machine/shown.py`; their directory is covered afterwards, with the one it lies on.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Any

from atoll.isolation.linux.sys.machine import Machine
from atoll.model.sandbox import Limits

_FILES = {name: f"/proc/{name}" for name in ("cpuinfo", "loadavg", "meminfo", "stat")} | {
    name: f"/sys/devices/system/cpu/{name}" for name in ("online", "possible", "present")
}
_ONLINE = "sys/devices/system/cpu/online"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_SAFE = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
_LIBC = ctypes.CDLL(None, use_errno=True)
_MEMINFO_MAX = 4096

# gVisor's names: ours. Bytes.
_MEMORY = {
    "Cached": "cache", "AnonPages": "anonymous", "Mapped": "mapped", "Shmem": "shared", "Unevictable": "unevictable",
    "Active(anon)": "active_anonymous", "Inactive(anon)": "inactive_anonymous", "Active(file)": "active_cache",
    "Inactive(file)": "inactive_cache",
}  # fmt: skip


def show(place: str, limits: Limits, guest_shows: Callable[..., None]) -> None:
    """`place`: a mount point to be covered by the caller. `guest_shows`: the guest's `show_machine`. Raises OSError."""
    kernels = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)
    machine = Machine()
    _mount("none", place, "tmpfs", _SAFE, "mode=0700,size=1m")
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.makedirs(f"{place}/{os.path.dirname(_ONLINE)}")
    guest_shows(directory, limits, (), hardware=machine, memory=lambda: _memory(kernels), cpu=dict, boot_s=0)
    for name, target in _FILES.items():
        source = f"{place}/{name}" if target.startswith("/proc/") else f"{place}/{_ONLINE}"
        _mount(source, target, None, _MS_BIND)
        _mount(None, target, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _SAFE)


def _memory(kernels: int) -> Mapping[str, int]:
    """From what gVisor says itself, by name as in `Meter`."""
    rows = (line.split() for line in os.pread(kernels, _MEMINFO_MAX, 0).decode("ascii", "replace").splitlines())
    table = {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if len(row) == 3 and row[1].isdigit()}
    found = {name: table[theirs] for theirs, name in _MEMORY.items() if theirs in table}
    return {**found, "usage": max(0, table.get("MemTotal", 0) - table.get("MemFree", 0))}


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words: list[Any] = [None if word is None else word.encode() for word in (source, target, kind)]
    data = None if options is None else options.encode()
    if _LIBC.mount(*words, ctypes.c_ulong(flags), data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", target)
