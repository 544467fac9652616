"""End the guest by the death of a child that it inherits."""

from __future__ import annotations

import os
import signal
import time

from inside import attempt, call

for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1):
    for parent in (0, 0x8000):  # CLONE_PARENT
        if os.fork() == 0:
            if attempt(call, "clone", parent | number, 0, 0, 0, 0) == 0:
                time.sleep(0.2)
            os._exit(0)
        os.wait()
time.sleep(0.5)
