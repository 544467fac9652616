"""Clearing away what an earlier server of the same run directory made and nobody has adopted. Blocking; in a thread.

Only what is provably ours is touched: the groups below our own base directory, and what is in them. Other servers on
the machine have other bases.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable

from atoll.isolation.base import ReclaimReport
from atoll.isolation.linux.cgroups.groups import Cgroups


def reclaim(cgroups: Cgroups, left_over: Iterable[str]) -> ReclaimReport:
    """Ends whatever is in the groups of these names, and removes them."""
    processes = 0
    groups = [cgroups.group(name) for name in sorted(left_over)]
    for group in groups:
        processes += _end_members(group.processes())
        group.thaw()
    for group in groups:
        group.remove()
    return ReclaimReport(processes=processes, cgroups=len(groups))


def remove_empty(cgroups: Cgroups, left_over: Iterable[str]) -> None:
    """Removes those of these groups that have no process: one that has may be a paused sandbox's. Raises OSError."""
    for name in left_over:
        group = cgroups.group(name)
        if not group.processes():
            group.try_remove()


def _end_members(pids: set[int]) -> int:
    ended = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            ended += 1
    return ended
