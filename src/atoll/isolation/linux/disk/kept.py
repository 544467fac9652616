"""A sandbox's disk while somebody keeps it: brought to the machine's own disk, copied as of one moment, mounted anew.

    flush     all that was written is in the image, and the image is on the machine's disk
    copy      as `flush`, and a second file with the same content: a reflink where the file system can, else its written
              parts. Nothing may be written meanwhile: the sandbox is frozen, or else (`stop`) the file system in the
              image is (FIFREEZE), which waits three times for all processors, 20 ms here.
    reopen    mounts an image that was let go, for a new overlay

The overlay on such a disk is volatile and never syncs, so all this goes to the file system below it, by another mount
of its device. Everything here blocks: call it in a thread. Everything raises OSError.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from atoll.isolation.linux.disk import loops, mounts
from atoll.isolation.linux.disk.image import WORK, mount_image
from atoll.isolation.linux.sys import syscalls
from atoll.model import durable

_FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
_FICLONE = 0x40049409
_RELEASED_WITHIN_S = 5.0
_CHUNK = 16 << 20


def flush(image: Path, *, ahead: bool = False) -> None:
    """Writes out what is pending; `ahead`: to the image only, so that the next flush has little to do."""
    with _file_system(image) as mounted:
        syscalls.call("syncfs", mounted, subject=str(image))
    if not ahead:
        durable.sync(image)


def copy(image: Path, target: Path, *, stop: bool = True) -> None:
    """A copy of the image as it is now. `target` must not exist; what there is of it after a failure stays.

    `stop` False: nobody can write to its file system now.
    """
    with _file_system(image) as mounted:
        if not stop:
            syscalls.call("syncfs", mounted, subject=str(image))
            copy_file(image, target)
            return
        fcntl.ioctl(mounted, _FIFREEZE, 0)
        try:
            copy_file(image, target)
        finally:
            fcntl.ioctl(mounted, FITHAW, 0)


def sync_tree(directory: Path) -> None:
    """Everything on the file system of that directory is on the machine's disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.call("syncfs", descriptor, subject=str(directory))
    finally:
        os.close(descriptor)


def reopen(image: Path) -> int:
    """A detached mount of an image that holds a sandbox's layer, without the rest of its overlay's working files."""
    wait_until_released(image)
    mount = mount_image(image)
    try:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(WORK, dir_fd=mount)  # the kernel does not take it again
        return mount
    except BaseException:
        os.close(mount)
        raise


def wait_until_released(image: Path) -> None:
    """The kernel lets go of an image shortly after the last process that had it. Raises OSError when it does not."""
    deadline, device = time.monotonic() + _RELEASED_WITHIN_S, None
    while (device := loops.device_of(image, device)) is not None:
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, "the disk is still in use", str(image))
        time.sleep(0.002)


@contextlib.contextmanager
def _file_system(image: Path) -> Iterator[int]:
    """A descriptor in the file system of an image that is mounted somewhere."""
    device = loops.device_of(image)
    if device is None:
        raise OSError(errno.ENODEV, "the disk is not mounted", str(image))
    with file_system_on(device) as inside:
        yield inside


@contextlib.contextmanager
def file_system_on(device: str) -> Iterator[int]:
    """A descriptor in the file system of a loop device, by its name. Raises OSError."""
    mount = mounts.new("ext4", [("source", f"/dev/{device}")], attributes=mounts.NODEV)
    try:
        inside = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        try:
            yield inside
        finally:
            os.close(inside)
    finally:
        os.close(mount)


def copy_file(source: Path, target: Path) -> None:
    """A reflink where the file system can; else what is not a hole. `target` must not exist. Raises OSError."""
    with source.open("rb", buffering=0) as given, target.open("xb", buffering=0) as made:
        try:
            fcntl.ioctl(made, _FICLONE, given.fileno())
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
                raise
            copy_written(given.fileno(), made.fileno())


def copy_written(source: int, target: int) -> None:
    """What is not a hole, into an empty file. Raises OSError."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        position = os.lseek(source, start, os.SEEK_HOLE)
        while start < position:
            done = _copy_range(source, target, start, min(position - start, _CHUNK))
            if done == 0:
                raise OSError(errno.EIO, "the disk became shorter while it was copied")
            start += done


def how_copied(directory: Path) -> str:
    """How a sandbox's disk there becomes a snapshot's, in words. Tries it."""
    source, target = (directory / f".{name}-trial-{os.getpid()}" for name in ("clone", "cloned"))
    try:
        source.write_bytes(b"x" * 4096)
        with source.open("rb") as given, target.open("xb") as made:
            fcntl.ioctl(made, _FICLONE, given.fileno())
        return "snapshots are clones of it"
    except OSError:
        return "snapshots copy it (a data directory on XFS or btrfs has clones, which take no time and no space)"
    finally:
        for path in (source, target):
            path.unlink(missing_ok=True)


def _copy_range(source: int, target: int, start: int, size: int) -> int:
    """How many bytes it was. From one file system to another the kernel copies by another call."""
    try:
        return os.copy_file_range(source, target, size, start, start)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
            raise
    os.lseek(target, start, os.SEEK_SET)
    return os.sendfile(target, source, start, size)
