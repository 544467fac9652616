"""Reach the directory in which the guest's socket was made."""

from __future__ import annotations

import os

from inside import attempt

print(
    "TOLD",
    *(attempt(os.listdir, "/.atoll/io") or ["nothing"]),
    "closed" if attempt(lambda: open("/.atoll/io/x", "w")) is None else "open",
)
