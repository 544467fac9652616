"""Take a mask off /proc."""

from __future__ import annotations

import os

from inside import attempt, call, hold

attempt(call, "umount2", b"/proc/kcore", 2)
attempt(call, "umount2", b"/proc/sys", 2)
attempt(call, "mount", None, b"/proc/sys", None, 4096 | 32, None)
descriptor = os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)
hold()
