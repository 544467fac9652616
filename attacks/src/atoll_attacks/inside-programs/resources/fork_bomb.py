"""Start processes without end."""

from __future__ import annotations

import os
import time


def bomb() -> None:
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.01)


for _ in range(2):
    if os.fork() == 0:
        bomb()
time.sleep(4)
print("DONE", flush=True)
