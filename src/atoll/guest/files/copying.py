"""File contents and trees copied inside the kernel, in pieces short enough for the event loop to live on in between."""

from __future__ import annotations

import asyncio
import errno
import os
import stat

from atoll.guest.files.directories import BATCH
from atoll.guest.files.metadata import Kept, copy_attributes
from atoll.guest.files.safe_open import refuse_own_proc

PIECE = 4 * 1024 * 1024
"""Bytes copied between two turns of the event loop: one to two milliseconds in page cache."""
TEMPORARY_MOVE = ".atoll-move-"
"""Names with this prefix are copies on their way to their place; listings and watchers do not show them."""
MAX_DEPTH = 100
"""Directories within each other that are copied; each holds two file descriptors open."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_OFFERED = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


async def copy_content(source: int, target: int) -> int:
    """Appends all of `source` (from its start) to `target` at its position; the number of bytes. Raises OSError."""
    offset = 0
    in_kernel = True
    while True:
        try:
            if in_kernel:
                count = os.copy_file_range(source, target, PIECE, offset_src=offset)
            else:
                count = os.sendfile(target, source, offset, PIECE)
        except OSError as error:
            if not in_kernel or error.errno not in _NOT_OFFERED:
                raise
            in_kernel = False
            continue
        if count == 0:
            if in_kernel and offset == 0:
                # Some file systems (procfs) answer 0 to copy_file_range whatever they hold.
                in_kernel = False
                continue
            return offset
        offset += count
        await asyncio.sleep(0)


async def copy_entry(source_dir: int, source: str, target_dir: int, target: str, kept: Kept, depth: int = 0) -> None:
    """Copies a file, link or tree with owner, mode, times and attributes to a name that is free. Raises OSError."""
    if depth > MAX_DEPTH:
        raise OSError(errno.ELOOP, f"tree is deeper than {MAX_DEPTH} directories; move it with `mv`", source)
    found = os.stat(source, dir_fd=source_dir, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        await _copy_tree(source_dir, source, target_dir, target, found, kept, depth)
    elif stat.S_ISREG(found.st_mode):
        await _copy_file(source_dir, source, target_dir, target, found, kept)
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(source, dir_fd=source_dir), target, dir_fd=target_dir)
        os.chown(target, found.st_uid, found.st_gid, dir_fd=target_dir, follow_symlinks=False)
    elif stat.S_ISFIFO(found.st_mode):
        os.mkfifo(target, stat.S_IMODE(found.st_mode), dir_fd=target_dir)
        os.chown(target, found.st_uid, found.st_gid, dir_fd=target_dir, follow_symlinks=False)
    else:
        raise OSError(errno.EXDEV, "a device or socket cannot be moved to another file system", source)


async def _copy_file(
    source_dir: int, source: str, target_dir: int, target: str, found: os.stat_result, kept: Kept
) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source_dir)
    try:
        refuse_own_proc(reading, source)
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target_dir)
        try:
            await copy_content(reading, writing)
            copy_attributes(reading, writing, kept)
            _copy_status(writing, found)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


async def _copy_tree(
    source_dir: int, source: str, target_dir: int, target: str, found: os.stat_result, kept: Kept, depth: int
) -> None:
    reading = os.open(source, _DIRECTORY, dir_fd=source_dir)
    try:
        refuse_own_proc(reading, source)
        os.mkdir(target, 0o700, dir_fd=target_dir)
        writing = os.open(target, _DIRECTORY, dir_fd=target_dir)
        try:
            with os.scandir(reading) as entries:
                names = [entry.name for entry in entries]
            for count, name in enumerate(names, 1):
                await copy_entry(reading, name, writing, name, kept, depth + 1)
                if count % BATCH == 0:
                    await asyncio.sleep(0)
            copy_attributes(reading, writing, kept)
            _copy_status(writing, found)
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _copy_status(target: int, found: os.stat_result) -> None:
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
