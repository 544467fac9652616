"""Take all memory by many processes."""

from __future__ import annotations

import os
import time

for _ in range(40):
    if os.fork() == 0:
        kept = [b"x" * (1 << 20) for _ in range(10)]
        time.sleep(2)
        os._exit(0)
time.sleep(2.5)
print("DONE", flush=True)
