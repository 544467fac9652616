"""Read the kernel's memory."""

from __future__ import annotations

print(open("/proc/kcore", "rb").read(4).hex(), flush=True)
