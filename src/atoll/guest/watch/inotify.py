"""inotify by ctypes, thin: one descriptor, watches on open files, events as read. What they mean: `watch.py`.

Format: inotify(7). The functions are looked up at import.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

MODIFY = 0x0002
ATTRIB = 0x0004
MOVED_FROM = 0x0040
MOVED_TO = 0x0080
CREATE = 0x0100
DELETE = 0x0200
DELETE_SELF = 0x0400
MOVE_SELF = 0x0800
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
ISDIR = 0x40000000

_ONLYDIR = 0x01000000
_EXCL_UNLINK = 0x04000000
_EVENTS = MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | _ONLYDIR | _EXCL_UNLINK
_BUFFER = 64 * 1024
_HEAD = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)
_init = _libc.inotify_init1
_init.argtypes = (ctypes.c_int,)
_add = _libc.inotify_add_watch
_add.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_remove = _libc.inotify_rm_watch
_remove.argtypes = (ctypes.c_int, ctypes.c_int)


class RawEvent(NamedTuple):
    """As the kernel gives it. `watch` is -1 when the queue has overflowed; `name` is empty for the directory itself."""

    watch: int
    mask: int
    cookie: int
    name: str


class Inotify:
    """One inotify instance. Reading never blocks."""

    def __init__(self) -> None:
        """Raises OSError (EMFILE: the user's instances are used up)."""
        self.fd = _checked(_init(os.O_CLOEXEC | os.O_NONBLOCK))

    def add(self, file: int, events: int = _EVENTS) -> int:
        """Watches an open directory, or for `events` any open file; the same one gives the same number.

        Raises OSError (ENOSPC: no watch left).
        """
        return _checked(_add(self.fd, b"/proc/self/fd/%d" % file, events))

    def remove(self, watch: int) -> None:
        """The kernel confirms with an IGNORED event. A watch that is gone already is no error."""
        _remove(self.fd, watch)

    def read(self) -> list[RawEvent]:
        """What has happened; [] when nothing waits."""
        try:
            data = os.read(self.fd, _BUFFER)
        except BlockingIOError:
            return []
        events: list[RawEvent] = []
        at = 0
        while at < len(data):
            watch, mask, cookie, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            events.append(RawEvent(watch, mask, cookie, os.fsdecode(data[at : at + length].rstrip(b"\0"))))
            at += length
        return events

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
