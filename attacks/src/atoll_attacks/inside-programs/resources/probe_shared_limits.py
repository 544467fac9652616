"""Say what a user cannot get any more of what the kernel counts for users. Runs alone, without `inside`."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys

if sys.argv[1:] not in ([], ["0"]):
    os.setgroups([])
    os.setresgid(*[int(sys.argv[1])] * 3)
    os.setresuid(*[int(sys.argv[1])] * 3)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
failed: list[str] = []
if libc.inotify_init1(0) < 0:
    failed.append("watch")
mq_open, mq_unlink, sigqueue = (240, 241, 129) if platform.machine() == "x86_64" else (180, 181, 138)
name = b"probe-%d" % os.getpid()
if libc.syscall(mq_open, name, os.O_CREAT | os.O_RDWR, 0o600, struct.pack("8q", 0, 2, 64, 0, 0, 0, 0, 0)) < 0:
    failed.append("make a message queue")
libc.syscall(mq_unlink, name)
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
for _ in range(4):
    if libc.syscall(sigqueue, os.getpid(), 40, struct.pack("iii", 40, 0, -1) + bytes(116)) < 0:
        failed.append("queue a signal")
        break
print("CANNOT", *failed, sep=", ") if failed else print("CAN ALL")
