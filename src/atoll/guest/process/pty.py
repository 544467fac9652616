"""Pseudo-terminals: open, size."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from dataclasses import dataclass

from atoll.guest.process.users import User

_WINSIZE = struct.Struct("HHHH")
_MAX_SIDE = 0xFFFF


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
