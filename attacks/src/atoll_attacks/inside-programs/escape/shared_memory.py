"""Read shared memory of the host."""

from __future__ import annotations

import ctypes

from inside import W, attempt, call, libc

for number in (attempt(call, "shmget", W["shm_key"], 4096, 0), W["shm_id"]):
    if number is not None:
        libc.shmat.restype = ctypes.c_void_p
        address = libc.shmat(number, None, 0o10000)
        if address not in (None, ctypes.c_void_p(-1).value):
            print(ctypes.string_at(address, 64))
