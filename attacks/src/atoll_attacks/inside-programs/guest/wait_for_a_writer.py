"""Control of passwd-is-a-pipe: make the guest wait for a writer that never comes."""

from __future__ import annotations

import os

from inside import W, hold

os.mkfifo(W["drop"] + "/fifo")
if os.fork() == 0:
    open(W["drop"] + "/fifo")
    os._exit(0)
hold()
