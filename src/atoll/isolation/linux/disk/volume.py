"""The file system of a volume: an ext4 with a journal in a sparse file, mounted by many at once.

    make     a new one, as large as its volume may become
    attach   THE loop device of the image: two devices on one image would each have a file system of their own on it
    mount    a detached mount of that device; all mounts of it share one file system in the kernel

The device clears itself when the last mount and the last descriptor are gone, whatever process is killed. Nothing in a
volume is a device, or gives anybody rights. Everything here blocks, and raises OSError.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import NamedTuple

from atoll.isolation.linux.disk import mounts
from atoll.isolation.linux.disk.image import LoopInfo, mkfs
from atoll.isolation.linux.disk.image import attach as new_device
from atoll.model.durable import sync

IMAGE = "volume.img"
OWNER = 1000
"""Whom a new volume belongs to: the user of E2B's templates. Anybody in a sandbox may write at its top."""

_LOOP_GET_STATUS64 = 0x4C05
_BLOCKS = Path("/sys/block")
_MKFS_WITHIN_S = 60.0
_JOURNAL_MIB = 16
_LEAST_WITH_THAT_JOURNAL_MIB = 256
_OPTIONS = [("noinit_itable", None), ("errors", "remount-ro")]
"""`noinit_itable`: the kernel would write zeros into every sparse image."""


class Device(NamedTuple):
    """`descriptor` keeps it attached; its owner closes it."""

    name: str
    descriptor: int


def make(image: Path, size_mib: int) -> None:
    """A new, empty one; written out. What there is of it after a failure stays."""
    with image.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        os.truncate(file.fileno(), size_mib << 20)
    journal = ["-J", f"size={_JOURNAL_MIB}"] if size_mib >= _LEAST_WITH_THAT_JOURNAL_MIB else []
    extended = f"lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner={OWNER}:{OWNER}"
    mkfs(image, size_mib, "^resize_inode", extended, *journal, within_s=_MKFS_WITHIN_S)
    device = attach(image)
    try:
        mounted = mount(device.name)
    finally:
        os.close(device.descriptor)
    try:
        os.chmod(".", 0o777, dir_fd=mounted)
        os.rmdir("lost+found", dir_fd=mounted)
    finally:
        os.close(mounted)
    sync(image)


def attach(image: Path) -> Device:
    """Its device, the one that is there or a new one. One caller at a time."""
    wanted = os.stat(image)
    with os.scandir(_BLOCKS) as entries:
        names = [entry.name for entry in entries if entry.name.startswith("loop")]
    for name in names:
        with contextlib.suppress(OSError):
            if not (_BLOCKS / name / "loop/backing_file").read_text().rstrip("\n").endswith(IMAGE):
                continue
            if (found := _open_if_of(name, wanted)) is not None:
                return found
    return Device(*new_device(image))


def mount(device: str) -> int:
    """A detached mount of a volume's device."""
    return mounts.new("ext4", [("source", device), *_OPTIONS], attributes=mounts.NODEV | mounts.NOSUID)


def _open_if_of(name: str, wanted: os.stat_result) -> Device | None:
    """Once it is open it stays whose it is."""
    path = f"/dev/{name}"
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        info = LoopInfo()
        fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, info)
        if (info.device, info.inode) == (wanted.st_dev, wanted.st_ino):
            return Device(path, os.dup(descriptor))
        return None
    finally:
        os.close(descriptor)
