"""Set the machine's clock."""

from __future__ import annotations

import struct
import time

from inside import call

now = time.time() + 3600
call("clock_settime", 0, struct.pack("qq", int(now), 0))
