"""End the guest by signal, as its user."""

from __future__ import annotations

import os

from inside import TARGET, attempt

for number in range(1, 65):
    if number not in (17, 32, 33):
        attempt(os.kill, TARGET, number)
