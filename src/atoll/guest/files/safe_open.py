"""Opening files on behalf of a caller, without being led astray: the one door of the file services to the kernel.

The guest is pid 1 and root of its sandbox, so two things that are harmless for a user's own program are not so here:

* **Magic links.** `/proc/self/exe`, `/proc/1/fd/7`, `/proc/self/root` lead from a path to what the *guest* has open,
  the host's files among it. Paths are opened with `openat2(RESOLVE_NO_MAGICLINKS)`, which refuses them wherever they
  stand in a path; a kernel without openat2 (gVisor) gets a path whose links were resolved here, as text, beforehand.
* **The guest's own `/proc` directory** (`environ`, `mem`, `maps`), which procfs shows under the number of each of its
  threads too. Files of procfs may be used, but below a number only those of a process that is named by its own number
  and is not this one.

FIFOs, sockets and devices are never opened for their content: opening is non-blocking and the caller checks the type.

ctypes is used for the system calls that Python does not have; the functions are looked up at import.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from typing import NamedTuple

_NR_OPENAT2 = 437
"""The same number on every architecture: it came after the tables were unified."""
_RESOLVE_NO_MAGICLINKS = 0x02
_AT_FDCWD = -100
_STATFS_SIZE = 256
_STATUS_SIZE = 4096
_THREAD_GROUP = re.compile(rb"^Tgid:\t(\d{1,10})$", re.M)

NETWORK_FILESYSTEMS = frozenset({0x6969, 0xFF534D42, 0xFE534D42, 0x517B, 0x65735546})
"""`f_type` of NFS, CIFS, SMB2, SMB and FUSE (linux/magic.h)."""

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_statfs = _libc.statfs
_statfs.argtypes = (ctypes.c_char_p, ctypes.c_void_p)


_RENAME_EXCHANGE = 2
_renameat2 = _libc.renameat2
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW_SIZE = ctypes.sizeof(_OpenHow)


def _knows_openat2() -> bool:
    """Asked once, of a path that is there. EPERM is what some filters answer to calls that they do not know."""
    how = _OpenHow(os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_NO_MAGICLINKS)
    fd = _openat2("/", how)
    if fd >= 0:
        os.close(fd)
    return fd >= 0 or ctypes.get_errno() != errno.ENOSYS


def _openat2(path: str, how: _OpenHow) -> int:
    return int(
        _syscall(
            ctypes.c_long(_NR_OPENAT2),
            ctypes.c_long(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(path)),
            ctypes.byref(how),
            ctypes.c_size_t(_HOW_SIZE),
        )
    )


_HAS_OPENAT2 = _knows_openat2()


class Place(NamedTuple):
    """A directory, open as O_PATH, and a name in it. The caller closes `directory`."""

    directory: int
    name: str


def read_regular(path: str, limit: int) -> bytes:
    """The first `limit` bytes of a file that the sandbox's users may have replaced. Raises OSError, also for what is no
    regular file: a pipe in its place would make the guest wait for a writer, a device would never end."""
    descriptor = open_path(path, os.O_RDONLY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        pieces, left = [], limit
        while left > 0 and (piece := os.read(descriptor, min(left, 1 << 20))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def open_path(path: str, flags: int) -> int:
    """`os.open` for a caller's path: close-on-exec, non-blocking, no magic links, not the guest's own /proc.

    Raises OSError as open does; ELOOP for a magic link, EACCES for the guest's own /proc.
    """
    # openat2 refuses O_PATH together with flags that mean nothing to it.
    fd = _open(path, flags | os.O_CLOEXEC | (0 if flags & os.O_PATH else os.O_NONBLOCK | os.O_NOCTTY))
    try:
        refuse_own_proc(fd, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def open_directory(path: str, *, follow: bool = True) -> int:
    """A directory for reading. Raises OSError, ENOTDIR among them."""
    return open_path(path, os.O_RDONLY | os.O_DIRECTORY | (0 if follow else os.O_NOFOLLOW))


def open_place(path: str) -> Place:
    """The directory that `path`'s last name stands in. Raises OSError."""
    head, name = os.path.split(path)
    if name in ("", ".", ".."):
        # `/` and `a/..` have no name of their own: the directory itself is the place, seen as `.`
        return Place(open_path(path, os.O_PATH | os.O_DIRECTORY), ".")
    return Place(open_path(head, os.O_PATH | os.O_DIRECTORY), name)


def exchange(directory: int, one: str, other: str) -> None:
    """Swaps two names of an open directory in one step. Raises OSError, EINVAL where the file system cannot."""
    if _renameat2(directory, os.fsencode(one), directory, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), other)


def is_network_filesystem(path: str) -> bool:
    """Whether `path` is on NFS, SMB or FUSE, where changes by others go unnoticed. Raises OSError."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if _statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    # `f_type` is the first word of struct statfs.
    return (ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF) in NETWORK_FILESYSTEMS


def _open(path: str, flags: int) -> int:
    if _HAS_OPENAT2:
        fd = _openat2(path, _OpenHow(flags, 0, _RESOLVE_NO_MAGICLINKS))
        if fd >= 0:
            return fd
        # EPERM is what some seccomp filters answer to calls that they do not know: decide by the plain call.
        if (code := ctypes.get_errno()) != errno.EPERM:
            raise OSError(code, os.strerror(code), path)
    return os.open(path if flags & os.O_NOFOLLOW else os.path.realpath(path), flags)


def refuse_own_proc(fd: int, path: str) -> None:
    """Raises OSError (EACCES) when `fd` is a file or directory of procfs that describes this process."""
    if os.fstat(fd).st_dev != _proc_device():
        return
    real = os.readlink(f"/proc/self/fd/{fd}")
    if real == "/proc":
        return
    first = real.removeprefix("/proc/").split("/", 1)[0]
    if not real.startswith("/proc/") or (first.isdigit() and not _is_another_process(int(first))):
        raise OSError(errno.EACCES, "the sandbox daemon's own /proc is not readable", path)


def _is_another_process(number: int) -> bool:
    """False for this process, for a thread of any, and for what has ended meanwhile."""
    try:
        with open(f"/proc/{number}/status", "rb", buffering=0) as status:
            group = _THREAD_GROUP.search(status.read(_STATUS_SIZE))
    except OSError:
        return False
    return group is not None and int(group[1]) == number != os.getpid()


def _proc_device() -> int:
    try:
        return os.stat("/proc").st_dev
    except OSError:
        return -1
