"""Drown the guest in signals."""

from __future__ import annotations

import os

from inside import TARGET

for _ in range(200000):
    os.kill(TARGET, 17 if TARGET == 1 else 9)
