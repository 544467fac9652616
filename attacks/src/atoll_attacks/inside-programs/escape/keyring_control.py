"""Control of keyring: read the host's keys."""

from __future__ import annotations

import ctypes

from inside import W, call, show

call("keyctl", 1, None)
call("add_key", b"user", b"atoll-canary", W["secret"].encode(), len(W["secret"]), -3)
found = call("keyctl", 10, -3, b"user", b"atoll-canary", 0)
buffer = ctypes.create_string_buffer(200)
call("keyctl", 11, found, buffer, 200)
show(buffer.value.decode())
