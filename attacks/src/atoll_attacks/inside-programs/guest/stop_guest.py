"""Stop the guest."""

from __future__ import annotations

import os
import signal
import time

from inside import TARGET, attempt

for number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN):
    attempt(os.kill, TARGET, number)
    time.sleep(0.1)
