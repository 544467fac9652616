"""See the host's name."""

from __future__ import annotations

import os

print("TOLD", os.uname().nodename)
