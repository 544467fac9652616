"""Find a device that is not on the list."""

from __future__ import annotations

import os

print("TOLD", *sorted(os.listdir("/dev")))
