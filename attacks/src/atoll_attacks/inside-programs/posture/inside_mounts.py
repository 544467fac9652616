"""Find a mount that is not on the list."""

from __future__ import annotations

lines = [line.partition(" - ") for line in open("/proc/self/mountinfo").read().splitlines()]
print("TOLD", *sorted({left.split()[4] + "=" + right.split()[0] for left, _, right in lines} - {"/.atoll/io=9p"}))
