"""Pseudo-terminals: open, size, what is typed."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from dataclasses import dataclass

from atoll.guest.process.users import User

_WINSIZE = struct.Struct("HHHH")
_MAX_SIDE = 0xFFFF
_SIGNALLING = (termios.VINTR, termios.VSUSP, termios.VQUIT)
_CONTROL = frozenset(b"\x03\x1a\x1c")
"""What these are on every terminal, unless a user has chosen others."""
_NEVER_TYPED = b"\xff"


@dataclass(frozen=True, slots=True)
class Terminal:
    """The guest's end (`master`, non-blocking) and the path of the program's end."""

    master: int
    path: str


def open_terminal(user: User, cols: int, rows: int) -> Terminal:
    """A new terminal that belongs to `user`. The caller closes `master`. Raises OSError (none left)."""
    master, slave = os.openpty()
    try:
        path = os.ttyname(slave)
        resize(master, cols, rows)
        if os.geteuid() == 0:
            os.fchown(slave, user.uid, -1)
        os.set_blocking(master, False)
    except OSError:
        os.close(master)
        raise
    finally:
        os.close(slave)
    return Terminal(master, path)


def resize(master: int, cols: int, rows: int) -> None:
    """The program in the foreground gets SIGWINCH. Raises OSError when the terminal is gone."""
    size = _WINSIZE.pack(min(rows, _MAX_SIDE), min(cols, _MAX_SIDE), 0, 0)
    fcntl.ioctl(master, termios.TIOCSWINSZ, size)


def type_in_gvisor(master: int, data: bytes | memoryview) -> int:
    """As `os.write`, for gVisor's releases of 2024, which raise signals also where a program has turned them off: one
    that takes ^C, ^Z and ^\\ as characters (ssh, vim, tmux) gets them as nothing else."""
    if _CONTROL.isdisjoint(data):
        return os.write(master, data)
    try:
        before = termios.tcgetattr(master)
        if before[3] & termios.ISIG:
            return os.write(master, data)
        characters = [_NEVER_TYPED if which in _SIGNALLING else one for which, one in enumerate(before[6])]
        termios.tcsetattr(master, termios.TCSANOW, [*before[:6], characters])
        try:
            return os.write(master, data)
        finally:
            termios.tcsetattr(master, termios.TCSANOW, before)
    except termios.error as error:
        raise OSError(*error.args) from error
