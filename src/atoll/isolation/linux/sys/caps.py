"""Capability sets: numbers and the three calls that reduce a process to a given set."""

from __future__ import annotations

import ctypes
from collections.abc import Set
from enum import IntEnum

from atoll.isolation.linux.sys import syscalls

_VERSION_3 = 0x20080522
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4


class Cap(IntEnum):
    """The capabilities that the code names; numbers from linux/capability.h."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    FOWNER = 3
    FSETID = 4
    KILL = 5
    SETGID = 6
    SETUID = 7
    SETPCAP = 8
    NET_BIND_SERVICE = 10
    SYS_CHROOT = 18
    SYS_PTRACE = 19
    SYS_ADMIN = 21
    SYS_RESOURCE = 24
    SYS_TIME = 25
    MKNOD = 27
    SETFCAP = 31


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32)]


def last_cap() -> int:
    """The highest capability number this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap") as source:
        return int(source.read())


def is_held(cap: Cap) -> bool:
    """Whether this process may use it now."""
    with open("/proc/self/status") as status:
        return any(int(line.split()[1], 16) >> cap & 1 for line in status if line.startswith("CapEff:"))


def mask(keep: Set[Cap]) -> int:
    """The set as the bit mask that /proc/<pid>/status shows."""
    return sum(1 << cap for cap in keep)


def held() -> frozenset[Cap]:
    """What this process may use now, of those that have a name here."""
    return frozenset(cap for cap in Cap if is_held(cap))


def limit_to(keep: Set[Cap]) -> None:
    """This process and all that it starts have, of what is held, no more than `keep`."""
    limit_bounding(keep, last_cap())
    limit_own(keep & held())


def limit_bounding(keep: Set[Cap], last: int) -> None:
    """No exec of this process or its children can ever gain a capability outside `keep`."""
    for number in range(last + 1):
        if number not in keep:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    syscalls.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def limit_own(keep: Set[Cap], *, reserve: Set[Cap] = frozenset()) -> None:
    """Effective and permitted become `keep`, inheritable becomes empty; `reserve` is permitted only."""
    low, high = _words(keep)
    most_low, most_high = _words(keep | reserve)
    header = _Header(_VERSION_3, 0)
    data = (_Data * 2)(_Data(low, most_low, 0), _Data(high, most_high, 0))
    syscalls.call("capset", ctypes.byref(header), ctypes.byref(data), subject="capabilities")


def _words(keep: Set[Cap]) -> tuple[int, int]:
    bits = mask(keep)
    return bits & 0xFFFFFFFF, bits >> 32
