"""How much of the host's space a sandbox's disk has taken, has promised to its programs, and may still promise.

Disks are sparse: a block inside is a block of the host's from the first write on. An ext4 does not give away what it
has reserved, and its reserve can be changed while it is mounted (`/sys/fs/ext4/<device>/reserved_clusters`). So
programs get ENOSPC in time, before the host's own file system is full and writes that had been acknowledged are lost.
What is allocated already can still be written.
"""

from __future__ import annotations

import os
from pathlib import Path

from atoll.isolation.base import DiskUse

_EXT4 = Path("/sys/fs/ext4")
_OWN_RESERVE = 4096
_OWN_RESERVE_SHARE = 50
"""What an ext4 reserves by itself: a fiftieth, at most 4096 clusters."""


def use_of(image: Path, seen: os.statvfs_result) -> DiskUse:
    """`seen`: the file system on the image, from inside. Raises OSError."""
    size = seen.f_frsize
    return DiskUse((seen.f_blocks - seen.f_bfree) * size, image.stat().st_blocks * 512, seen.f_bfree * size)


def allow(device: str, seen: os.statvfs_result, more: int | None) -> None:
    """Lets it allocate that many more bytes, or (None) all it has. Raises OSError."""
    reserve = min(seen.f_blocks // _OWN_RESERVE_SHARE, _OWN_RESERVE)
    if more is not None:
        reserve = max(reserve, seen.f_bfree - more // seen.f_frsize)
    descriptor = os.open(_EXT4 / device / "reserved_clusters", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, str(reserve).encode())
    finally:
        os.close(descriptor)
