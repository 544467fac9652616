"""End a process of the host."""

from __future__ import annotations

import os
import signal
import time

from inside import W, attempt

attempt(os.kill, W["victim"], signal.SIGKILL)
time.sleep(0.2)
