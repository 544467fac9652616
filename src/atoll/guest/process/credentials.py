"""The ids of the calling thread alone. (The C library's calls change those of every thread, with a signal to each.)"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Sequence

_NUMBERS = {
    "x86_64": {"setgroups": 116, "setresuid": 117, "setresgid": 119},
    "aarch64": {"setgroups": 159, "setresuid": 147, "setresgid": 149},
}.get(platform.machine())
_LIBC = ctypes.PyDLL(None, use_errno=True)
"""Holding the interpreter's lock: nobody looks in between."""
_LIBC.syscall.restype = ctypes.c_long


def _call(name: str, *arguments: object) -> None:
    assert _NUMBERS is not None
    if _LIBC.syscall(ctypes.c_long(_NUMBERS[name]), *arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def set_groups(groups: Sequence[int]) -> None:
    """Supplementary groups. Raises OSError."""
    if _NUMBERS is None:  # a machine on which no tier with threads in the guest exists
        os.setgroups(list(groups))
        return
    try:
        _call("setgroups", ctypes.c_size_t(len(groups)), (ctypes.c_uint32 * len(groups))(*groups))
    except PermissionError:
        if not is_single_id():  # there nobody may, and there is but one group
            raise


@functools.cache
def is_single_id() -> bool:
    """Whether there is but one id here, root's: a sandbox of an ordinary user without subordinate ids."""
    try:
        with open("/proc/self/uid_map") as table:
            rows = [line.split() for line in table]
    except OSError:
        return False
    return len(rows) == 1 and rows[0][0] == "0" and rows[0][2] == "1"


def set_users(real: int, effective: int, saved: int) -> None:
    """setresuid(2). Raises OSError."""
    if _NUMBERS is None:
        os.setresuid(real, effective, saved)
        return
    _call("setresuid", ctypes.c_uint32(real), ctypes.c_uint32(effective), ctypes.c_uint32(saved))


def set_group(real: int, effective: int, saved: int) -> None:
    """setresgid(2). Raises OSError."""
    if _NUMBERS is None:
        os.setresgid(real, effective, saved)
        return
    _call("setresgid", ctypes.c_uint32(real), ctypes.c_uint32(effective), ctypes.c_uint32(saved))
