"""Find a network device, or a route: device:destination:gateway."""

from __future__ import annotations

import re

names = sorted(re.findall(r"^\s*([^:\s]+):", open("/proc/net/dev").read(), re.M))
rows = [line.split() for line in open("/proc/net/route").read().splitlines()[1:]]
print("TOLD", *names, *(":".join(row[:3]) for row in rows))
