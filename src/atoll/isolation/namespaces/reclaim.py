"""Finding again, and clearing away, what an earlier server of the same run directory made. Blocking; runs in a thread.

Only what is provably ours is touched: processes named by our records (pid and start time and boot), groups below our
own base directory. Other servers on the machine have other bases.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Set
from pathlib import Path

from atoll.isolation.base import GUEST_SOCKET, ReclaimReport
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.process_identity import has_ended, open_recorded
from atoll.isolation.linux.sys.syscalls import pidfd_kill
from atoll.isolation.namespaces.layout import RunLayout

_DIE_WITHIN_S = 5.0


def reclaim(layout: RunLayout, cgroups: Cgroups, keep: Set[str], own: str | None) -> ReclaimReport:
    """See IsolationBackend.reclaim. Groups whose names begin with `own` are of this server's zygote: they wait."""
    processes = groups = directories = 0
    kept_groups: set[str] = set()
    recorded: set[str] = set()
    ending: list[int] = []
    for group, record in list(layout.records()):
        recorded.add(group)
        pidfd = None
        with contextlib.suppress(KeyError, ValueError, TypeError):
            pidfd = open_recorded(record)
        if pidfd is not None and record.get("sandbox_id") in keep:
            os.close(pidfd)
            kept_groups.add(group)
            continue
        if pidfd is not None:
            pidfd_kill(pidfd)
            cgroups.group(group).thaw()
            ending.append(pidfd)
            processes += 1
        with contextlib.suppress(OSError, KeyError, TypeError):
            (Path(record["state_dir"]) / GUEST_SOCKET).unlink()
        layout.forget(group)
        directories += 1
    waiting = {name for name in cgroups.names() - recorded if own is not None and name.startswith(own)}
    left_over = sorted(cgroups.names() - kept_groups - waiting)
    for name in left_over:
        group_found = cgroups.group(name)
        processes += _end_members(group_found.processes())
        group_found.thaw()
        groups += 1
    deadline = time.monotonic() + _DIE_WITHIN_S
    for pidfd in ending:
        has_ended(pidfd, max(0.0, deadline - time.monotonic()))
        os.close(pidfd)
    for name in left_over:
        cgroups.group(name).remove()
    return ReclaimReport(processes=processes, cgroups=groups, directories=directories)


def _end_members(pids: set[int]) -> int:
    """Ends processes that are in a group of ours without a record: children that were being made."""
    ended = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
            ended += 1
    return ended
