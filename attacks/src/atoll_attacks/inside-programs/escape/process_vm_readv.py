"""Read the guest's memory by system call."""

from __future__ import annotations

import ctypes
import re

from inside import TARGET, attempt, call


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


lines = open(f"/proc/{TARGET}/maps").read().splitlines()
for line in lines:
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    size = min(end - start, 1 << 20)
    buffer = ctypes.create_string_buffer(size)
    mine, theirs = Vector(ctypes.addressof(buffer), size), Vector(start, size)
    if attempt(call, "process_vm_readv", TARGET, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0):
        print(re.findall(rb"canary-[0-9a-f]{32}", buffer.raw))
