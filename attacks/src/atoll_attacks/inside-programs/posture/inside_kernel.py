"""See the host's kernel."""

from __future__ import annotations

import os

print("TOLD", os.uname().release)
