"""Make the guest wait for everybody."""

from __future__ import annotations

import struct
import time

from inside import TARGET, attempt, call, hold

time.sleep(1)  # the host looks at what it was before
attempt(call, "setpriority", 0, TARGET, 19)
attempt(call, "sched_setscheduler", TARGET, 5, bytes(4))
attempt(call, "sched_setaffinity", TARGET, 8, struct.pack("Q", 1))
hold(seconds=0.5)
