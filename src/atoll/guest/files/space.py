"""The message when a file system has no room: what was needed, what is free, and in which file system.

A sandbox has several file systems, and a full one is easily taken for another. Owns the look and the words.
"""

from __future__ import annotations

import errno
import os

from atoll.guest.files.paths import shown
from atoll.guest.files.safe_open import open_directory

FULL = (errno.ENOSPC, errno.EDQUOT)


def file_system_of(path: str) -> tuple[str, os.statvfs_result]:
    """Where the file system is mounted in which `path` stands or would be made, and its numbers. Raises OSError."""
    fd = _nearest_directory(os.path.dirname(path))
    try:
        parts = [part for part in os.readlink(f"/proc/self/fd/{fd}").split("/") if part]
        # Directories are asked: of a file an overlay shows the device of the layer that it is in. And step by step: the
        # look-up of each name above a deep one would take the square of its depth.
        device = os.fstat(fd).st_dev
        while parts:
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            if os.fstat(above).st_dev != device:
                os.close(above)
                break
            os.close(fd)
            fd = above
            parts.pop()
        return "/" + "/".join(parts), os.fstatvfs(fd)
    finally:
        os.close(fd)


def _nearest_directory(path: str) -> int:
    while True:
        try:
            return open_directory(path)
        except (FileNotFoundError, NotADirectoryError):
            if path == "/":
                raise
            path = os.path.dirname(path)


def shortage(error: OSError, path: str, needed: str = "", held: int = 0) -> str:
    """Why `error`, one of FULL, came of writing at `path`, in numbers.

    `needed`: what the write would have taken, in words; `held`: bytes that it has taken already and gives back.
    Raises OSError.
    """
    place, found = file_system_of(path)
    numbers = f"{found.f_bavail * found.f_frsize + held} bytes free in the file system at '{shown(place)}'"
    if found.f_files and not found.f_favail:
        numbers += f", but all of its {found.f_files} files (inodes) are in use"
    reason = "disk quota exceeded" if error.errno == errno.EDQUOT else "not enough disk space"
    return f"{reason}: {f'{needed} needed, ' if needed else ''}{numbers}"
