"""Leave the guest with dead children."""

from __future__ import annotations

import os

for _ in range(150):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
