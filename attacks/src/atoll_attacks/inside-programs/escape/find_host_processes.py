"""See the host's processes."""

from __future__ import annotations

import os

from inside import show

for entry in os.listdir("/proc"):
    if entry.isdigit() and int(entry) != os.getpid():
        try:
            show(f"/proc/{entry}/environ")
        except OSError:
            pass
