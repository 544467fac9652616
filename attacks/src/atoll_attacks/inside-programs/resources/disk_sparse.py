"""Fill the host's disk with holes that are filled later."""

from __future__ import annotations

import os

from inside import TAG

block = os.urandom(1 << 20)
total = 0
path = "/var/tmp/sparse-" + TAG
try:
    with open(path, "wb", buffering=0) as f:
        f.truncate(100 << 30)
        for n in range(200):
            f.seek(n << 28)
            total += f.write(block)
except OSError as error:
    print(error)
finally:
    os.unlink(path)
print("WROTE", total, "DONE", flush=True)
