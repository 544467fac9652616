"""Write what is shown of the machine."""

from __future__ import annotations

import os

from inside import attempt

places = ["/proc/" + name for name in ("cpuinfo", "loadavg", "meminfo", "stat")] + ["/sys/devices/system/cpu/online"]
for place in places:
    attempt(os.chmod, place, 0o666)
opened = [place for place in places if attempt(os.open, place, os.O_WRONLY) is not None]
print("TOLD", *(opened or ["nothing"]))
