"""Take terminals, as many as there are."""

from __future__ import annotations

import os

from inside import hold

kept: list[int] = []
try:
    while len(kept) < 4000:
        kept.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
except OSError as error:
    print(error)
print(len(kept), "terminals", flush=True)
hold()
