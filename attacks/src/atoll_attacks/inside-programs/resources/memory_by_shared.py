"""Take all memory by shared memory."""

from __future__ import annotations

import os

from inside import TAG

total = 0
try:
    with open("/dev/shm/big-" + TAG, "wb", buffering=0) as f:
        for _ in range(300):
            total += f.write(b"x" * (1 << 20))
except OSError as error:
    print(error)
finally:
    os.unlink("/dev/shm/big-" + TAG)
print("SHARED", total >> 20, "DONE", flush=True)
