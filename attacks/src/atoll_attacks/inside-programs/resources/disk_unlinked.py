"""Fill the host's disk with files that have no name."""

from __future__ import annotations

import os

from inside import TAG

block = os.urandom(1 << 20)
total, kept = 0, []
try:
    for n in range(20):
        path = f"/var/tmp/gone-{TAG}-{n}"
        f = open(path, "wb", buffering=0)
        os.unlink(path)
        kept.append(f)
        for _ in range(10):
            total += f.write(block)
except OSError as error:
    print(error)
print("WROTE", total, "DONE", flush=True)
