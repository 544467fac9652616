"""sysinfo(2) of the sandbox's programs, answered with the sandbox's figures, not the machine's.

    program: sysinfo(&place) ──► its filter holds it ──► the listener is readable ──► figures into place ──► it goes on

The figures are written as the program's own user, who may write there anyway: whatever `place` is, nothing can be
reached with this that its user could not reach. Where that cannot be (a set-uid program) the kernel answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import re
import struct
from collections.abc import Callable, Iterator

from atoll.guest.process import credentials

_RECEIVE, _SEND, _IS_VALID = 0xC0502100, 0xC0182101, 0x40082102
_REQUEST = struct.Struct("=QII iIQ 6Q")
"""struct seccomp_notif: id, pid, flags; number, architecture, instruction pointer, arguments."""
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1
_UNCHANGED = 0xFFFFFFFF
_IDS = re.compile(r"^([UG]id):\t(\d+)\t(\d+)\t(\d+)", re.M)

_LIBC = ctypes.PyDLL(None, use_errno=True)
_LIBC.process_vm_writev.restype = ctypes.c_ssize_t


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


class Answers:
    """Owns the listener `asked`. `figures` gives the bytes of a struct sysinfo."""

    def __init__(self, asked: int, figures: Callable[[], bytes]) -> None:
        self._asked = asked
        self._figures = figures

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self._asked, self._answer_one)

    def _answer_one(self) -> None:
        request = bytearray(_REQUEST.size)
        with contextlib.suppress(OSError):  # the caller has gone, or goes now
            fcntl.ioctl(self._asked, _RECEIVE, request)
            number, pid, _, _, _, _, place, *_ = _REQUEST.unpack(request)
            error, flags = 0, 0
            try:
                self._write(number, pid, place)
            except PermissionError:
                flags = _CONTINUE
            except OSError as fault:
                error = -(fault.errno or errno.EFAULT)
            fcntl.ioctl(self._asked, _SEND, bytearray(_ANSWER.pack(number, 0, error, flags)))

    def _write(self, number: int, pid: int, place: int) -> None:
        """Raises OSError: EPERM (not ours to write), EFAULT (nothing is there), ESRCH, ENOENT (it has gone)."""
        data = self._figures()
        ids = _ids(pid)
        fcntl.ioctl(self._asked, _IS_VALID, struct.pack("=Q", number))  # those were the caller's, not its successor's
        buffer = ctypes.create_string_buffer(data, len(data))
        ours, theirs = _Vector(ctypes.addressof(buffer), len(data)), _Vector(place, len(data))
        with _as_user(*ids):
            written = _LIBC.process_vm_writev(
                ctypes.c_int(pid), ctypes.byref(ours), ctypes.c_ulong(1), ctypes.byref(theirs), ctypes.c_ulong(1),
                ctypes.c_ulong(0),
            )  # fmt: skip
            failed = ctypes.get_errno()
        if written != len(data):
            raise OSError(failed if written < 0 else errno.EFAULT, "cannot be written")


def _ids(pid: int) -> tuple[int, int]:
    """User and group of a process. Raises PermissionError where it is not simply one user's; FileNotFoundError."""
    with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
        rows = {kind: {int(one) for one in ids} for kind, *ids in _IDS.findall(file.read(4096).decode("latin-1"))}
    if {len(ids) for ids in rows.values()} != {1} or len(rows) != 2:
        raise PermissionError(errno.EPERM, "it has several users")
    return rows["Uid"].pop(), rows["Gid"].pop()


@contextlib.contextmanager
def _as_user(uid: int, gid: int) -> Iterator[None]:
    """By its real ids, by which the kernel judges who may write to whom; the others stay, and what they allow."""
    credentials.set_group(gid, _UNCHANGED, _UNCHANGED)
    try:
        credentials.set_users(uid, _UNCHANGED, _UNCHANGED)
        yield
    finally:
        try:
            credentials.set_users(0, _UNCHANGED, _UNCHANGED)
            credentials.set_group(0, _UNCHANGED, _UNCHANGED)
        except OSError:
            os._exit(70)  # a guest that is stuck as somebody else must not go on


def packed(
    *, up_s: int, loads: tuple[float, float, float], total: int, free: int, shared: int, cache: int, processes: int
) -> bytes:
    """A struct sysinfo of a 64-bit machine. Sizes in bytes. Pure."""
    fixed = (int(load * 65536) for load in loads)
    return struct.pack(
        "=q3Q6QHH4xQQI4x", up_s, *fixed, total, free, shared, cache, 0, 0, min(processes, 0xFFFF), 0, 0, 0, 1
    )
