"""Load code into the kernel."""

from __future__ import annotations

import struct

from inside import call, hold

kept = call("bpf", 0, struct.pack("6I", 2, 4, 4, 1, 0, 0) + bytes(96), 120)
hold()
