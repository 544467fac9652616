"""Find a network device."""

from __future__ import annotations

import re

print("TOLD", *re.findall(r"^\s*([^:\s]+):", open("/proc/net/dev").read(), re.M))
