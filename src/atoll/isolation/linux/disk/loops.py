"""Which loop device shows a file: found by the file itself, as device and inode number.

The path that the kernel shows (`backing_file`) depends on the mounts of the process that attached the file: for a data
directory that is a mount of its own it may be another one than ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

_BLOCKS = "/sys/block"
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CLR_FD = 0x4C01
_LOOP_INFO64 = 232
"""The size of `struct loop_info64`; it begins with the two numbers that identify a file."""
DELETED = " (deleted)"


def device_of(image: Path, before: str | None = None) -> str | None:
    """The name of the device on that file (`loop3`); None: there is none. Raises no error.

    `before`: the device that it was on a while ago; to look at that one first spares a look at all of them.
    """
    if before is not None and is_on(before, image):
        return before
    with contextlib.suppress(OSError), os.scandir(_BLOCKS) as entries:
        for entry in entries:
            if entry.name.startswith("loop") and is_on(entry.name, image):
                return entry.name
    return None


def number_of(device: str) -> str:
    """`major:minor`. Raises OSError."""
    return Path(f"{_BLOCKS}/{device}/dev").read_text().strip()


def devices() -> dict[tuple[int, int], str]:
    """`identity` of a file → the name of the device on it, of all that there are. Raises no error."""
    found = {}
    with contextlib.suppress(OSError), os.scandir(_BLOCKS) as entries:
        for entry in entries:
            if entry.name.startswith("loop") and os.path.exists(f"{entry.path}/loop/backing_file"):
                with contextlib.suppress(OSError):
                    found[_file_of(entry.name)] = entry.name
    return found


def shown() -> dict[str, str]:
    """The name of each device that shows a file → the path that the kernel shows for it, with `DELETED` behind that of
    one without a name. Raises no error."""
    found = {}
    for place in Path(_BLOCKS).glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found[place.parent.parent.name] = place.read_text().rstrip("\n")
    return found


def let_go(device: str) -> None:
    """It shows nothing any more; one that is in use does when its last user is gone. Raises OSError."""
    descriptor = os.open(f"/dev/{device}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _LOOP_CLR_FD)
    finally:
        os.close(descriptor)


def identity(image: Path) -> tuple[int, int] | None:
    """None: there is no such file."""
    try:
        file = image.stat()
    except OSError:
        return None
    return file.st_dev, file.st_ino


def is_on(device: str, image: Path) -> bool:
    """Whether that device is the image's now: numbers are given out anew."""
    if not os.path.exists(f"{_BLOCKS}/{device}/loop/backing_file"):
        return False
    try:
        return _file_of(device) == identity(image)
    except OSError:
        return False


def _file_of(device: str) -> tuple[int, int]:
    """Raises OSError: it shows nothing."""
    descriptor = os.open(f"/dev/{device}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        shown = fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64))
    finally:
        os.close(descriptor)
    lo_device, lo_inode = struct.unpack_from("=QQ", shown)
    return lo_device, lo_inode
