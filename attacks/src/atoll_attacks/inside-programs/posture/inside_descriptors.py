"""Inherit a descriptor."""

from __future__ import annotations

import os

found = [name for name in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + name)]
extra = [name for name in found if int(name) > 2]
kinds = [os.readlink("/proc/self/fd/" + str(number)).partition(":")[0] for number in range(3)]
print("TOLD", len(extra), *kinds)
