"""Take watches, message queues and pending signals, as many as there are."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
from collections.abc import Callable

from inside import TAG, TARGET, call, hold, libc

kept: list[int] = []


def take(most: int, act: Callable[[int], int]) -> int:
    got = 0
    try:
        while got < most:
            kept.append(act(got))
            got += 1
    except OSError as error:
        print(error, flush=True)
    return got


def inotify(_: int) -> int:
    number: int = libc.inotify_init1(0)
    if number < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    return number


def queue(n: int) -> int:
    shape = struct.pack("8q", 0, 10, 8192, 0, 0, 0, 0, 0)
    return call("mq_open", b"%s-%d" % (TAG.encode(), n), os.O_CREAT | os.O_RDWR, 0o600, shape)


def pending(_: int) -> int:
    return call("rt_sigqueueinfo", os.getpid(), 40, note)


if TARGET != 1:
    os.setresgid(54321, 54321, 54321)
    os.setresuid(54321, 54321, 54321)
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
note = struct.pack("iii", 40, 0, -1) + bytes(116)
print(take(5000, inotify), "instances", take(250, queue), "queues", take(200000, pending), "signals", flush=True)
hold()
