"""Read the host's keys."""

from __future__ import annotations

import ctypes

from inside import attempt, call

for ring in (-4, -5, -3):
    found = attempt(call, "keyctl", 10, ring, b"user", b"atoll-canary", 0)
    if found is not None:
        buffer = ctypes.create_string_buffer(200)
        call("keyctl", 11, found, buffer, 200)
        print(buffer.value)
