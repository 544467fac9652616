"""A seccomp filter as classic BPF, put together here: no libseccomp, nothing to compile in a new sandbox.

    wrong architecture (32-bit calls on a 64-bit kernel)  → the process is killed
    number above the newest that was reviewed, or x32      → ENOSYS, as an older kernel would say
    numbers to be answered for (if any)                    → the holder of the listener
    rules of this number, in order                         → their errno
    not among the allowed (where there is such a list)     → ENOSYS
    anything else                                          → allowed

The number is looked for by halving: neighbours with the same answer are one range, so that a call costs seven or eight
comparisons however many rules there are. (Where the answer depends on the number alone, kernels since 5.11 remember it
and do not even run the program.)

A rule looks at one argument's low 32 bits only: the kernel truncates the ones that are checked here (flags of clone,
ioctl commands, socket families) to 32 bits itself, so that high bits cannot smuggle a value past the filter. Pointers
are no such arguments: GIVEN looks at all 64 bits.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum

from atoll.isolation.linux.sys import syscalls

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54
_JUMP = 0x05
_JUMP_EQUAL = 0x15
_JUMP_GREATER_EQUAL = 0x35
_JUMP_ANY_BIT = 0x45
_RETURN = 0x06
_FARTHEST = 255
"""How many instructions a conditional jump can pass over."""

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
    GIVEN = "is no null pointer, and no more are the arguments of these numbers"


@dataclass(frozen=True, slots=True)
class Rule:
    """Denies `number` with `error`, always or where argument `argument` passes `test` against `values`.

    With `when` = (argument, value) only calls are looked at in which that argument has that value. `mask`: the bits of
    the argument that count. With `error` 0 the call is not made, and its caller is answered as if it was.
    """

    number: int
    error: int = errno.EPERM
    argument: int = -1
    test: Test = Test.IN
    values: tuple[int, ...] = ()
    when: tuple[int, int] | None = None
    mask: int | None = None


_Instruction = tuple[int, int, int, int]
_Verdict = tuple[_Instruction, ...]
"""What ends the program for a range of numbers."""

_ALLOW: _Verdict = ((_RETURN, 0, 0, _RET_ALLOW),)


def _errno(number: int) -> _Instruction:
    return (_RETURN, 0, 0, _RET_ERRNO | number)


def _load_argument(index: int, *, high: bool = False) -> _Instruction:
    return (_LOAD, 0, 0, _AT_ARGUMENTS + 8 * index + 4 * high)


def _argument_rule(rule: Rule) -> list[_Instruction]:
    """Returns the rule's errno, or falls out of its end."""
    deny = _errno(rule.error)
    if rule.test is Test.GIVEN:
        body = _given((rule.argument, *rule.values), deny)
    else:
        body = [_load_argument(rule.argument)]
        if rule.mask is not None:
            body.append((_AND, 0, 0, rule.mask))
        body += _compare(rule, deny)
    if rule.when is not None:
        argument, value = rule.when
        body = [_load_argument(argument), (_JUMP_EQUAL, 0, len(body), value), *body]
    return body


def _compare(rule: Rule, deny: _Instruction) -> list[_Instruction]:
    count = len(rule.values)
    if rule.test is Test.ANY_BIT:
        mask = 0
        for value in rule.values:
            mask |= value
        return [(_JUMP_ANY_BIT, 0, 1, mask), deny]
    # A hit jumps over the remaining comparisons, and over what a miss does.
    hits = [(_JUMP_EQUAL, count - index - (rule.test is Test.IN), 0, value) for index, value in enumerate(rule.values)]
    if rule.test is Test.NOT_IN:
        return [*hits, deny]
    if not hits:
        return []
    *others, (_, _, _, last) = hits
    return [*others, (_JUMP_EQUAL, 0, 1, last), deny]


def _given(arguments: Sequence[int], deny: _Instruction) -> list[_Instruction]:
    body = [deny]
    for argument in reversed(arguments):
        low, high = _load_argument(argument), _load_argument(argument, high=True)
        body = [low, (_JUMP_EQUAL, 0, 2, 0), high, (_JUMP_EQUAL, len(body), 0, 0), *body]
    return body


def assemble(
    rules: Sequence[Rule],
    newest: int,
    machine: str = syscalls.MACHINE,
    *,
    answered: Sequence[int] = (),
    allowed: Collection[int] | None = None,
) -> bytes:
    """The program as the kernel's array of sock_filter. `newest`: the highest system call number that was reviewed.

    `answered`: calls that somebody answers for the kernel; the program is then to be installed with `listen`.
    `allowed`: the only numbers that are let through, after the rules; None: all that no rule is about.
    """
    of_number: dict[int, list[Rule]] = {}
    for rule in rules:
        of_number.setdefault(rule.number, []).append(rule)

    def verdict(number: int) -> _Verdict:
        if number in answered:
            return ((_RETURN, 0, 0, _RET_USER_NOTIF),)
        otherwise = _ALLOW if allowed is None or number in allowed else (_errno(errno.ENOSYS),)
        return _verdict(of_number.get(number, ()), otherwise)

    ranges: list[tuple[int, _Verdict]] = []
    for number in range(newest + 1):
        if not ranges or ranges[-1][1] != verdict(number):
            ranges.append((number, verdict(number)))
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _AT_ARCH),
        (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _RET_KILL_PROCESS),
        (_LOAD, 0, 0, _AT_NUMBER),
        *_search([*ranges, (newest + 1, (_errno(errno.ENOSYS),))]),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _verdict(rules: Sequence[Rule], otherwise: _Verdict) -> _Verdict:
    body: list[_Instruction] = []
    for rule in rules:
        if rule.argument < 0:
            return (*body, _errno(rule.error))
        body += _argument_rule(rule)
    return (*body, *otherwise)


def _search(ranges: Sequence[tuple[int, _Verdict]]) -> list[_Instruction]:
    """Finds the range that the accumulator's number is in, given by where each begins."""
    if len(ranges) == 1:
        return list(ranges[0][1])
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    first = ranges[middle][0]
    if len(below) <= _FARTHEST:
        return [(_JUMP_GREATER_EQUAL, len(below), 0, first), *below, *above]
    return [(_JUMP_GREATER_EQUAL, 0, 1, first), (_JUMP, 0, 0, len(below)), *below, *above]


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
