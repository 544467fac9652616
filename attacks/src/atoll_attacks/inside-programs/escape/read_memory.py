"""Read the guest's memory."""

from __future__ import annotations

import os

from inside import TARGET, hold

kept = os.open(f"/proc/{TARGET}/mem", os.O_RDONLY)
hold()
