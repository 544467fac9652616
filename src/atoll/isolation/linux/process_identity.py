"""Processes found again by what was written down about them: pid, start time and boot together name exactly one."""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from typing import Any

from atoll.isolation.linux.sys.syscalls import boot_id, start_time


def describe(pid: int) -> dict[str, Any]:
    """What `open_recorded` needs. Raises OSError when the process has ended."""
    return {"pid": pid, "started_ticks": start_time(pid), "boot_id": boot_id()}


def open_recorded(record: Mapping[str, Any]) -> int | None:
    """A pidfd of the recorded process; None if it is no more. Raises KeyError, ValueError for a damaged record."""
    pid, ticks = int(record["pid"]), int(record["started_ticks"])
    if record["boot_id"] != boot_id():
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    try:  # the descriptor pins the process: a start time read now is its own, or it has just ended
        if start_time(pid) == ticks and not has_ended(pidfd):
            return pidfd
    except OSError:
        pass
    os.close(pidfd)
    return None


def has_ended(pidfd: int, within_s: float = 0.0) -> bool:
    """Whether the process has ended, waiting (and blocking) for that up to `within_s`."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(int(within_s * 1000)))
