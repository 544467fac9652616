"""Say what the kernel says of this process: the fields of /proc/self/status that are named."""

from __future__ import annotations

from inside import ARGUMENTS

with open("/proc/self/status") as source:
    fields = dict(line.split(":\t", 1) for line in source.read().splitlines() if ":\t" in line)
print("TOLD", *(fields[name].strip() for name in ARGUMENTS))
