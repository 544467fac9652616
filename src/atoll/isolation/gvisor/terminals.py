"""/dev/tty where the kernel cannot open it (gVisor of 2024 answers EIO): a link that leads each caller to its terminal.

    /dev/tty ──► PLACE/own ──► /dev/pts/N         PLACE is a file system of ours (FUSE) with this one name in it

The kernel names the caller with each look-up, and a caller without a terminal gets ENXIO, as on Linux. That
kernel does not show controlling terminals either: taken for it is the one that the leader of the caller's session has
open. (Wrong for a leader that `setsid` made on somebody else's terminal: it would have none.) The open itself is the
caller's own, with the caller's rights.

A thread answers, not the guest's loop: the guest itself may be the caller, and would wait for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import stat
import struct
import threading
from typing import NamedTuple

PLACE = "/dev/.tty"
_NAME = b"own"
_OPTIONS = "fd={},user_id=0,group_id=0,rootmode=40555,allow_other,default_permissions"
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8

_MOST_READ = 1 << 17
_MOST_DESCRIPTORS = 64
_ALWAYS_S = 1 << 30
_ROOT, _FIRST_TERMINAL = 1, 2
"""Numbers of nodes: terminal N is node _FIRST_TERMINAL + N, so that what is remembered of one is never another's."""
_TERMINAL = re.compile(r"/dev/pts/(\d{1,9})")

# fuse(4), linux/fuse.h
_LOOKUP, _FORGET, _GETATTR, _READLINK = 1, 2, 3, 5
_INIT, _OPENDIR, _READDIR, _RELEASEDIR, _INTERRUPT, _BATCH_FORGET = 26, 27, 28, 29, 36, 42
_UNANSWERED = frozenset({_FORGET, _BATCH_FORGET, _INTERRUPT})
_HEAD_IN = struct.Struct("=IIQQIIII")
_HEAD_OUT = struct.Struct("=IiQ")
_INIT_OUT = struct.Struct("=IIIIHHIIHH32x")
_ENTRY = struct.Struct("=QQQQII")
_ATTR_VALID = struct.Struct("=QII")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_OPEN_OUT = struct.Struct("=QII")


class Question(NamedTuple):
    """One request of the kernel: which call, about which node, by which thread; `body` is what the call adds."""

    opcode: int
    unique: int
    node: int
    thread: int
    body: bytes


def adopt() -> int | None:
    """Mounts it where /dev/tty does not work; the descriptor to `serve`, None where none is needed. Raises OSError."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
        return None
    except OSError as error:
        if error.errno != errno.EIO:  # ENXIO: it works, and we have no terminal
            return None
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    os.makedirs(PLACE, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if libc.mount(b"tty", PLACE.encode(), b"fuse", flags, _OPTIONS.format(device).encode()) != 0:
        raise OSError(ctypes.get_errno(), "cannot be mounted", PLACE)
    os.unlink("/dev/tty")
    os.symlink(f"{PLACE}/{_NAME.decode()}", "/dev/tty")
    return device


def serve(device: int) -> None:
    """Answers for as long as the process lives, in a thread of its own, with the rights that the caller has now."""
    threading.Thread(target=_serve, args=(device,), name="tty", daemon=True).start()


def _serve(device: int) -> None:
    while True:
        try:
            data = os.read(device, _MOST_READ)
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                continue
            return
        question = parse(data)
        if question.opcode not in _UNANSWERED:
            with contextlib.suppress(OSError):  # ENOENT: the caller has gone
                os.write(device, answer(question))


def parse(data: bytes) -> Question:
    """A request as it is read from the device."""
    _, opcode, unique, node, _, _, thread, _ = _HEAD_IN.unpack_from(data)
    return Question(opcode, unique, node, thread, data[_HEAD_IN.size :])


def answer(question: Question) -> bytes:
    """What is to be written for it."""
    try:
        body, code = _content(question), 0
    except Exception as error:  # the caller waits for an answer, whatever it is
        body, code = b"", -((error.errno if isinstance(error, OSError) else None) or errno.EIO)
    return _HEAD_OUT.pack(_HEAD_OUT.size + len(body), code, question.unique) + body


def _content(question: Question) -> bytes:
    if question.opcode == _INIT:
        return _INIT_OUT.pack(7, 31, 0, 0, 0, 0, 4096, 1, 0, 0)
    if question.opcode == _LOOKUP:
        node = _FIRST_TERMINAL + _looked_up(question)
        return _ENTRY.pack(node, 0, 0, _ALWAYS_S, 0, 0) + _attributes(node)
    if question.opcode == _GETATTR:
        return _ATTR_VALID.pack(_ALWAYS_S, 0, 0) + _attributes(question.node)
    if question.opcode == _READLINK and question.node >= _FIRST_TERMINAL:
        return _path(question.node)
    if question.opcode == _OPENDIR:
        return _OPEN_OUT.pack(0, 0, 0)
    if question.opcode in (_READDIR, _RELEASEDIR):
        return b""  # its name is not listed: nobody needs to stumble over it
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _looked_up(question: Question) -> int:
    """The number of the caller's terminal. Never remembered: the next to ask may be somebody else."""
    if question.node != _ROOT or question.body.rstrip(b"\0") != _NAME:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    number = terminal_of(question.thread)
    if number is None:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return number


def _path(node: int) -> bytes:
    return b"/dev/pts/%d" % (node - _FIRST_TERMINAL)


def _attributes(node: int) -> bytes:
    link = node >= _FIRST_TERMINAL
    mode, size = (stat.S_IFLNK | 0o777, len(_path(node))) if link else (stat.S_IFDIR | 0o555, 0)
    return _ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1 if link else 2, 0, 0, 0, 4096, 0)


def terminal_of(thread: int) -> int | None:
    """The number of the terminal (/dev/pts/N) of a thread's session, None where it has none or the thread is gone."""
    try:
        with open(f"/proc/{thread}/stat", "rb") as file:
            leader = int(file.read(4096).rpartition(b")")[2].split()[3])
        opened = sorted(int(name) for name in os.listdir(f"/proc/{leader}/fd"))
    except (OSError, ValueError, IndexError):
        return None
    for number in opened[:_MOST_DESCRIPTORS]:
        with contextlib.suppress(OSError):
            if found := _TERMINAL.fullmatch(os.readlink(f"/proc/{leader}/fd/{number}")):
                return int(found[1])
    return None
