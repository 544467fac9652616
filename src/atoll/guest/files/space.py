"""What is said when a file system has no room: what was needed, what is free, and in which file system.

A sandbox has several file systems, and a full one is easily taken for another. Owns the look and the words.
"""

from __future__ import annotations

import errno
import os

from atoll.guest.files.paths import shown

FULL = (errno.ENOSPC, errno.EDQUOT)


def mount_point(path: str) -> str:
    """Where the file system is mounted in which `path` stands or would be made."""
    # The directory is asked: of a file an overlay shows the device of the layer that it is in.
    where = os.path.dirname(os.path.realpath(path))
    while not os.path.ismount(where):
        where = os.path.dirname(where)
    return where


def shortage(error: OSError, path: str, needed: str = "", held: int = 0) -> str:
    """Why `error`, one of FULL, came of writing at `path`, in numbers.

    `needed`: what the write would have taken, in words; `held`: bytes that it has taken already and gives back.
    """
    place = mount_point(path)
    found = os.statvfs(place)
    numbers = f"{found.f_bavail * found.f_frsize + held} bytes free in the file system at '{shown(place)}'"
    if found.f_files and not found.f_favail:
        numbers += f", but all of its {found.f_files} files (inodes) are in use"
    reason = "disk quota exceeded" if error.errno == errno.EDQUOT else "not enough disk space"
    return f"{reason}: {f'{needed} needed, ' if needed else ''}{numbers}"
