"""Type into a terminal that a more privileged program reads."""

from __future__ import annotations

import fcntl
import os
import pty

from inside import W, in_child

primary, secondary = pty.openpty()


def act() -> None:
    os.setsid()
    fcntl.ioctl(secondary, 0x540E, 0)
    for letter in "reve:" + W["secret"] + "\n":
        fcntl.ioctl(secondary, 0x5412, letter.encode())
    print("typed", os.read(secondary, 200), flush=True)
    os.open(W["drop"] + "/typed", os.O_CREAT | os.O_WRONLY)


in_child(act)
