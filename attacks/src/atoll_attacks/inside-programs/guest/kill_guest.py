"""End the guest by signal."""

from __future__ import annotations

import os
import signal

from inside import TARGET, attempt

for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV, signal.SIGABRT):
    attempt(os.kill, TARGET, number)
