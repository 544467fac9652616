"""Watch the kernel."""

from __future__ import annotations

import struct

from inside import call, hold

kept = call("perf_event_open", struct.pack("IIQ", 1, 112, 0) + bytes(96), 0, -1, -1, 0)
hold()
