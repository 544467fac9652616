"""Keep memory from being taken back."""

from __future__ import annotations

import ctypes
import mmap

from inside import libc

size = 64 << 20
area = mmap.mmap(-1, size)
place = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(area)))
locked = libc.mlock(place, ctypes.c_size_t(size)) == 0
print("LOCKED", size >> 20 if locked else 0, "DONE", flush=True)
