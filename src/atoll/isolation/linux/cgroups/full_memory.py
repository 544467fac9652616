"""Notifies that a group's memory is used up, before the kernel ends a process; and a reserve in which to choose better.

For tiers in which the kernel could only choose wrongly: to it, a gVisor sandbox is one process.

    limit            notified. v1: a threshold of memory.usage_in_bytes. v2: memory.high, which also slows down
    limit + reserve  v1: processes that need more wait (oom_kill_disable), notified. v2: the kernel ends what it likes

Caches of files count for the kernel, but it takes them back by itself: a notification means to look, and no more.
"""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path

from atoll.isolation.linux.cgroups.groups import Group

_STEPS = 8
"""v1: thresholds between the limit and its reserve's end; caches may have passed the first one long ago."""


class FullMemory:
    """One group's watch. Owns its descriptors until `close`."""

    def __init__(self, group: Group, limit: int, reserve: int) -> None:
        """Sets the limit (bytes) and begins to watch. Raises OSError: this machine has no such controller."""
        self._v1 = group.v1.get("memory")
        self._v2 = group.v2 if "memory" in group.v2_controllers else None
        self._group = group
        self._reserve = reserve
        self._limit = limit
        self._descriptors: list[int] = []
        self._poll: select.epoll | None = None
        try:
            if self._v1 is not None:
                self._watch_v1(self._v1)
            elif self._v2 is not None:
                self._watch_v2(self._v2)
            else:
                raise OSError("no memory controller")
            self.limit(limit)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when there is something to look at: call `seen`, then `missing_bytes`."""
        return self._poll.fileno() if self._poll is not None else self._descriptors[0]

    def seen(self) -> None:
        """Takes note, so that the descriptor is readable for something new only."""
        if self._poll is not None:
            self._poll.poll(0)
            os.pread(self._descriptors[0], 4096, 0)
        else:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._descriptors[0])

    def missing_bytes(self) -> int:
        """How many bytes are in use beyond the limit, without caches of files; at least 1 if somebody waits."""
        usage = self._group.usage().memory_bytes or 0
        return max(usage - self._limit, int(self.is_stuck()), 0)

    def is_stuck(self) -> bool:
        """Whether the reserve is used up too, and somebody waits for memory."""
        return self._v1 is not None and "under_oom 1" in (self._v1 / "memory.oom_control").read_text()

    def limit(self, limit: int) -> None:
        """A new limit, in bytes, with its reserve. Blocks while the kernel makes room. Raises OSError (EBUSY: none)."""
        if self._v2 is not None:
            _write(self._v2 / "memory.high", str(limit))
        self._group.limit_memory(limit + self._reserve)
        if self._v1 is not None:
            for part in range(_STEPS):
                threshold = limit + part * self._reserve // _STEPS
                _write(self._v1 / "cgroup.event_control", f"{self._descriptors[0]} {self._descriptors[2]} {threshold}")
        self._limit = limit

    def give(self) -> None:
        """A second reserve: those who wait may go on, also the guest, which is to choose. Raises OSError."""
        self._group.limit_memory(self._limit + 2 * self._reserve)

    def take_back(self) -> None:
        """One reserve again. Blocks while the kernel makes room. Raises OSError (EBUSY: not yet possible)."""
        self._group.limit_memory(self._limit + self._reserve)

    def let_the_kernel_decide(self) -> None:
        """From now on it ends what it likes. Raises OSError."""
        if self._v1 is not None:
            _write(self._v1 / "memory.oom_control", "0")
        elif self._v2 is not None:
            _write(self._v2 / "memory.high", "max")

    def close(self) -> None:
        """Idempotent. What was set stays."""
        if self._poll is not None:
            self._poll.close()
            self._poll = None
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _watch_v1(self, place: Path) -> None:
        self._descriptors.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        for name in ("memory.oom_control", "memory.usage_in_bytes"):
            self._descriptors.append(os.open(place / name, os.O_RDONLY | os.O_CLOEXEC))
        _write(place / "cgroup.event_control", f"{self._descriptors[0]} {self._descriptors[1]}")
        _write(place / "memory.oom_control", "1")

    def _watch_v2(self, place: Path) -> None:
        self._descriptors.append(os.open(place / "memory.events", os.O_RDONLY | os.O_CLOEXEC))
        self._poll = select.epoll()
        self._poll.register(self._descriptors[0], select.EPOLLPRI)
        os.pread(self._descriptors[0], 4096, 0)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
