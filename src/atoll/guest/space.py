"""What is said when a file system has no room: what was needed, what is free, and in which file system.

A sandbox has several file systems, and a full one is easily taken for another. Owns the look and the words.
"""

from __future__ import annotations

import errno
import os

from atoll.guest.paths import shown

FULL = (errno.ENOSPC, errno.EDQUOT)


def mount_point(path: str) -> str:
    """Where the file system that `path` is in, or would be made in, is mounted."""
    where = os.path.realpath(path)
    while not os.path.ismount(where):
        where = os.path.dirname(where)
    return where


def shortage(error: OSError, path: str, needed: int | None = None, *, exact: bool = False, held: int = 0) -> str:
    """Why `error`, one of FULL, came of writing at `path`, in numbers.

    `needed` bytes are what the write would have taken, or at least that unless `exact`; `held` bytes are what the
    unfinished write has taken and gives back.
    """
    place = mount_point(path)
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize + held
    said = "disk quota exceeded" if error.errno == errno.EDQUOT else "not enough disk space"
    if found.f_files and not found.f_favail:
        numbers = f"all {found.f_files} files (inodes) are in use, {free} bytes are free"
    elif needed is None:
        numbers = f"{free} bytes free"
    else:
        numbers = f"{'' if exact else 'at least '}{needed} bytes needed, {free} bytes free"
    return f"{said}: {numbers} in the file system at '{shown(place)}'"
