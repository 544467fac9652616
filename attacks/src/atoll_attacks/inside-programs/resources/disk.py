"""Fill the host's disk."""

from __future__ import annotations

import os

from inside import TAG

block = os.urandom(1 << 20)
total = 0
try:
    with open("/var/tmp/big-" + TAG, "wb", buffering=0) as f:
        for _ in range(200):
            total += f.write(block)
except OSError as error:
    print(error)
finally:
    os.unlink("/var/tmp/big-" + TAG)
print("WROTE", total, "DONE", flush=True)
