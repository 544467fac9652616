"""A seccomp filter as classic BPF, put together here: no libseccomp, nothing to compile in a newborn sandbox.

    wrong architecture (32-bit calls on a 64-bit kernel)  → the process is killed
    number above the newest that was reviewed, or x32      → ENOSYS, as an older kernel would say
    numbers to be answered for (if any)                    → whoever holds the listener
    rules, in order                                        → their errno
    anything else                                          → allowed

A rule may look at one argument's low 32 bits only: the kernel truncates the ones that are checked here (flags of clone,
ioctl commands, socket families) to 32 bits itself, so that high bits cannot smuggle a value past the filter.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from atoll.isolation.linux.sys import syscalls

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP = 0x05
_JUMP_EQUAL = 0x15
_JUMP_GREATER_EQUAL = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06

_RET_KILL_PROCESS = 0x80000000
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000
_RET_USER_NOTIF = 0x7FC00000

_AT_NUMBER, _AT_ARCH, _AT_ARGUMENTS = 0, 4, 16
_SET_MODE_FILTER = 1
_FLAG_NEW_LISTENER = 1 << 3
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


class Test(Enum):
    """How a rule looks at its argument."""

    __test__ = False  # not a pytest class

    ANY_BIT = "any of these bits is set"
    IN = "is one of these"
    NOT_IN = "is none of these"


@dataclass(frozen=True, slots=True)
class Rule:
    """Denies `number` with `error`, always or where argument `argument` passes `test` against `values`.

    With `when` = (argument, value) only calls are looked at in which that argument has that value.
    """

    number: int
    error: int = errno.EPERM
    argument: int = -1
    test: Test = Test.IN
    values: tuple[int, ...] = ()
    when: tuple[int, int] | None = None


_Instruction = tuple[int, int, int, int]


def _errno(number: int) -> _Instruction:
    return (_RETURN, 0, 0, _RET_ERRNO | number)


def _load_argument(index: int) -> _Instruction:
    return (_LOAD, 0, 0, _AT_ARGUMENTS + 8 * index)


def _argument_rule(rule: Rule) -> list[_Instruction]:
    """Runs with the number in the accumulator; falls out of its end with the number loaded again."""
    deny, again = _errno(rule.error), (_LOAD, 0, 0, _AT_NUMBER)
    load = _load_argument(rule.argument)
    count = len(rule.values)
    if rule.test is Test.ANY_BIT:
        mask = 0
        for value in rule.values:
            mask |= value
        body = [load, (_JUMP_ANY_BIT, 0, 1, mask), deny, again]
    elif rule.test is Test.IN:
        # A hit jumps over the remaining comparisons and the jump to `again`.
        hits = [(_JUMP_EQUAL, count - index, 0, value) for index, value in enumerate(rule.values)]
        body = [load, *hits, (_JUMP, 0, 0, 1), deny, again]
    else:
        hits = [(_JUMP_EQUAL, count - index, 0, value) for index, value in enumerate(rule.values)]
        body = [load, *hits, deny, again]
    if rule.when is not None:
        argument, value = rule.when
        body = [_load_argument(argument), (_JUMP_EQUAL, 0, len(body) - 1, value), *body]
    return [(_JUMP_EQUAL, 0, len(body), rule.number), *body]


def assemble(
    rules: Sequence[Rule], newest: int, machine: str = syscalls.MACHINE, *, answered: Sequence[int] = ()
) -> bytes:
    """The program as the kernel's array of sock_filter. `newest`: the highest system call number that was reviewed.

    `answered`: calls that somebody answers for the kernel; the program is then to be installed with `listen`.
    """
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _RET_KILL_PROCESS),
        (_LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_GREATER_EQUAL, 0, 1, newest + 1),
        _errno(errno.ENOSYS),
    ]
    for number in answered:
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _RET_USER_NOTIF)]
    for rule in rules:
        if rule.argument < 0:
            program += [(_JUMP_EQUAL, 0, 1, rule.number), _errno(rule.error)]
        else:
            program += _argument_rule(rule)
    program.append((_RETURN, 0, 0, _RET_ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(program: bytes) -> None:
    """Puts this process and all it will ever fork under `program`. Needs CAP_SYS_ADMIN in the user namespace.

    (no_new_privs would do instead of the capability, but then `sudo` would be dead inside.)
    """
    _install(program, 0)


def listen(program: bytes) -> int:
    """As `install`, with a descriptor on which its answered calls arrive (guest/machine/sysinfo.py). Raises OSError.

    Once the descriptor is closed by everybody, those calls fail with ENOSYS.
    """
    return _install(program, _FLAG_NEW_LISTENER)


def _install(program: bytes, flags: int) -> int:
    memory = ctypes.create_string_buffer(program, len(program))
    argument = _Program(len(program) // 8, ctypes.addressof(memory))
    return syscalls.call("seccomp", _SET_MODE_FILTER, flags, ctypes.byref(argument), subject="filter")
