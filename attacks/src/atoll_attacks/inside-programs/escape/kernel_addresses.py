"""Learn where the kernel lies."""

from __future__ import annotations

for line in open("/proc/kallsyms"):
    print(line)
    break
