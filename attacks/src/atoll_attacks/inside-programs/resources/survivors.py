"""Leave processes behind that outlive their command."""

from __future__ import annotations

import os
import signal
import time

for _ in range(10):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        os._exit(0)
print("DONE", flush=True)
