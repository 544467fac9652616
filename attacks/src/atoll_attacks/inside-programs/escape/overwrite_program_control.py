"""Control of overwrite-program: overwrite the program that the host runs (/proc/1/exe)."""

from __future__ import annotations

import os
import signal
import time

from inside import TARGET, W, hold

os.kill(TARGET, signal.SIGKILL)  # a running program cannot be written; one that has just ended can
kept = []
for _ in range(200):
    try:
        kept.append(os.open(os.path.join(os.path.dirname(W["secret"]), "victim"), os.O_WRONLY))
        break
    except OSError:
        time.sleep(0.01)
hold()
