"""Read the kernel's log."""

from __future__ import annotations

import ctypes

from inside import attempt, call

buffer = ctypes.create_string_buffer(1 << 20)
length = attempt(call, "syslog", 3, buffer, len(buffer)) or 0
print(buffer.raw[:length].decode("latin-1"))
