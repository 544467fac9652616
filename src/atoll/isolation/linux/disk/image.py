"""A disk of a given size for one sandbox, on any host file system: a sparse file with an ext4 of its own, loop-mounted.

    template(size)  made once per size by mkfs.ext4, kept in memory as its few written pieces
    make_image      a new sparse file from those pieces: about a millisecond, 0.3 MiB on disk
    mount_image     loop device + mount, both detached: seen by nobody, freed by the kernel with the last user

Quotas would be lighter, but ordinary hosts have them neither compiled in nor switched on. What is full says ENOSPC,
blocks and inodes alike. No journal and no barriers: the disk is as volatile as its sandbox. The loop device clears
itself when the mount goes (LO_FLAGS_AUTOCLEAR), so that nothing is left when every process of ours is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from atoll.isolation.linux.disk import mounts

IMAGE = "disk.img"
UPPER, WORK = "upper", "work"
"""The directories on it: what a sandbox has written, and what the overlay needs beside."""
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_READ_ONLY = 1
_AUTOCLEAR = 4
_ATTEMPTS = 64
_OPTIONS: Sequence[tuple[str, str | None]] = (
    ("barrier", "0"),
    ("noinit_itable", None),  # the kernel would write 160 MB of zeros into every 10 GiB disk
    ("errors", "remount-ro"),  # what is damaged is not written on
)
_FEATURES = "^has_journal,^resize_inode,flex_bg,uninit_bg,^64bit"


class LoopInfo(ctypes.Structure):
    """struct loop_info64."""

    _fields_ = [
        ("device", ctypes.c_uint64), ("inode", ctypes.c_uint64), ("rdevice", ctypes.c_uint64),
        ("offset", ctypes.c_uint64), ("size_limit", ctypes.c_uint64), ("number", ctypes.c_uint32),
        ("encrypt_type", ctypes.c_uint32), ("encrypt_key_size", ctypes.c_uint32), ("flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 64), ("crypt_name", ctypes.c_char * 64), ("key", ctypes.c_char * 32),
        ("init", ctypes.c_uint64 * 2),
    ]  # fmt: skip


class _Config(ctypes.Structure):
    """struct loop_config."""

    _fields_ = [
        ("fd", ctypes.c_uint32), ("block_size", ctypes.c_uint32), ("info", LoopInfo), ("reserved", ctypes.c_uint64 * 8),
    ]  # fmt: skip


class Piece(NamedTuple):
    """Written bytes of a template."""

    offset: int
    data: bytes


class Disk(NamedTuple):
    """An image that is mounted. Its owner closes `mount`; `size_mib` is how large it was asked for."""

    image: Path
    mount: int
    size_mib: int
    is_kept: bool = False
    """A paused sandbox's: its file is where it belongs, and is nobody's to remove."""

    def discard(self) -> None:
        """Frees it, and unless it is kept removes the file. Once."""
        os.close(self.mount)
        if not self.is_kept:
            with contextlib.suppress(OSError):
                self.image.unlink()

    def move(self, directory: Path) -> None:
        """The image's file goes where it is removed with its sandbox; it may as well have no name at all."""
        if self.is_kept:
            return
        try:
            os.rename(self.image, directory / IMAGE)
        except OSError:
            with contextlib.suppress(OSError):
                self.image.unlink()


class Templates:
    """Empty file systems by size, made when first asked for; those used last are remembered. For any thread."""

    def __init__(self, remembered: int = 8, most_bytes: int = 64 << 20) -> None:
        self._remembered = remembered
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._pieces: OrderedDict[int, Sequence[Piece]] = OrderedDict()

    def known(self, size_mib: int) -> Sequence[Piece] | None:
        """What an empty file system of that size consists of, if that is remembered."""
        with self._lock:
            if size_mib in self._pieces:
                self._pieces.move_to_end(size_mib)
            return self._pieces.get(size_mib)

    def pieces(self, size_mib: int) -> Sequence[Piece]:
        """What an empty file system of that size consists of. Blocks for as long as mkfs takes. Raises OSError."""
        if (known := self.known(size_mib)) is not None:
            return known
        made = _make_template(size_mib)
        with self._lock:
            self._pieces[size_mib] = made
            while len(self._pieces) > 1 and self._is_too_much():
                self._pieces.popitem(last=False)
        return made

    def _is_too_much(self) -> bool:
        held = sum(len(piece.data) for pieces in self._pieces.values() for piece in pieces)
        return len(self._pieces) > self._remembered or held > self._most_bytes


def why_not(directory: Path) -> str:
    """Why disks cannot be made in `directory` on this machine; "" when they can. Tries one."""
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed"
    if not os.path.exists("/dev/loop-control"):
        return "there is no /dev/loop-control"
    try:
        with tempfile.TemporaryFile(dir=directory) as image:
            _fill(image.fileno(), 16, Templates().pieces(16))
            os.close(mount_image(_path_of(image.fileno())))
    except OSError as error:
        return str(error)
    return ""


def make_image(path: Path, size_mib: int, pieces: Sequence[Piece]) -> None:
    """A new image with an empty file system. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _fill(descriptor, size_mib, pieces)
    finally:
        os.close(descriptor)


def _fill(descriptor: int, size_mib: int, pieces: Sequence[Piece]) -> None:
    os.truncate(descriptor, size_mib << 20)
    for piece in pieces:
        os.pwrite(descriptor, piece.data, piece.offset)


def _path_of(descriptor: int) -> Path:
    """Of a file without a name: nothing is left of it, whatever is killed."""
    return Path(f"/proc/self/fd/{descriptor}")


def mount_image(path: Path) -> int:
    """A detached mount of the image. Its loop device goes when the mount goes. Raises OSError."""
    device, descriptor = attach(path)
    try:
        return mounts.new("ext4", [("source", device), *_OPTIONS], attributes=mounts.NODEV)
    finally:
        os.close(descriptor)


def make_disk(path: Path, size_mib: int, pieces: Sequence[Piece]) -> Disk:
    """A new image at `path`, mounted. Raises OSError; nothing is left then."""
    try:
        make_image(path, size_mib, pieces)
        return Disk(path, mount_image(path), size_mib)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def attach(path: Path, *, read_only: bool = False) -> tuple[str, int]:
    """A loop device for the image, and a descriptor that keeps it until it is mounted, or for good. Raises OSError."""
    backing = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0)
    try:
        with open("/dev/loop-control", "rb", buffering=0) as control:
            for _ in range(_ATTEMPTS):
                device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
                descriptor = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
                try:
                    config = _Config(fd=backing, info=LoopInfo(flags=flags, name=b"atoll"))
                    fcntl.ioctl(descriptor, _LOOP_CONFIGURE, config)
                except OSError as error:
                    os.close(descriptor)
                    if error.errno != errno.EBUSY:  # somebody else was quicker
                        raise
                    continue
                return device, descriptor
    finally:
        os.close(backing)
    raise OSError(errno.EBUSY, "no loop device is free")


def mkfs(
    path: Path,
    size_mib: int,
    features: str,
    extended: str,
    *more: str,
    within_s: float = 30.0,
    descriptors: Sequence[int] = (),
) -> None:
    """An empty ext4 in a file that has its size already; `descriptors`: what of ours `path` is one of.

    Blocks. Raises OSError, TimeoutError.
    """
    try:
        made = subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", *more, "-O", features, "-E", extended, str(path)],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=within_s, check=False, pass_fds=descriptors,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"mkfs.ext4 for {size_mib} MiB took more than {within_s:.0f} s") from error
    if made.returncode != 0:
        words = made.stderr.decode(errors="replace").strip()
        raise OSError(errno.EIO, f"mkfs.ext4 for {size_mib} MiB: {words[-300:]}")


def _make_template(size_mib: int) -> list[Piece]:
    with tempfile.TemporaryFile(prefix="atoll-disk-") as image:
        image.truncate(size_mib << 20)
        own = image.fileno()
        extended = "lazy_itable_init=1,nodiscard,packed_meta_blocks=1"
        mkfs(_path_of(own), size_mib, _FEATURES, extended, descriptors=(own,))
        return list(_written(own))


def _written(image: int) -> list[Piece]:
    """The parts of a sparse file that are not all zeros, by pages."""
    pieces: list[Piece] = []
    end, position = os.lseek(image, 0, os.SEEK_END), 0
    while position < end:
        try:
            start = os.lseek(image, position, os.SEEK_DATA)
        except OSError:
            break
        position = os.lseek(image, start, os.SEEK_HOLE)
        data = os.pread(image, position - start, start)
        for offset in range(0, len(data), 4096):
            page = data[offset : offset + 4096]
            if not page.strip(b"\0"):
                continue
            last = pieces[-1] if pieces else None
            if last is not None and last.offset + len(last.data) == start + offset:
                pieces[-1] = Piece(last.offset, last.data + page)
            else:
                pieces.append(Piece(start + offset, page))
    return pieces
