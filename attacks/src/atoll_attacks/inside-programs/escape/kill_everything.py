"""End every process that can be reached."""

from __future__ import annotations

import os
import signal
import time

from inside import TARGET

if TARGET == 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(-1, signal.SIGTERM)
time.sleep(0.2)
