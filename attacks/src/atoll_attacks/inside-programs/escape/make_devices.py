"""Make a device of one's own and open it."""

from __future__ import annotations

import os
import stat

from inside import attempt, hold

kept = []
for kind, major, minor in (
    (stat.S_IFCHR, 1, 1),
    (stat.S_IFCHR, 1, 2),
    (stat.S_IFCHR, 1, 4),
    (stat.S_IFCHR, 10, 229),
    (stat.S_IFCHR, 10, 200),
    (stat.S_IFCHR, 10, 232),
    (stat.S_IFCHR, 10, 237),
    (stat.S_IFBLK, 7, 0),
    (stat.S_IFBLK, 8, 0),
    (stat.S_IFBLK, 254, 0),
    (stat.S_IFBLK, 259, 0),
):
    for place in ("/tmp/n", "/dev/n", "/dev/shm/n", "/dev/pts/n"):
        if attempt(os.mknod, place, 0o600 | kind, os.makedev(major, minor)) is None and os.path.exists(place):
            kept.append(attempt(os.open, place, os.O_RDONLY | os.O_NONBLOCK))
            os.unlink(place)
hold(kept)
