"""Control of device: read a device without an end."""

from __future__ import annotations

print(open("/dev/zero", "rb").read(1 << 20) == bytes(1 << 20))
