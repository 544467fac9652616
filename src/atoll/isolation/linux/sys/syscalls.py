"""System calls that Python has no function for, by number, through ctypes.

Two ways in: `call` releases the interpreter lock around the system call (for calls that may block), `call_held` keeps
it (for calls that must not let another thread run in between).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal as _signal
from collections.abc import Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)
_HELD = ctypes.PyDLL(None, use_errno=True)
for _library in (_LIBC, _HELD):
    _library.syscall.restype = ctypes.c_long

MACHINE = platform.machine()

# Numbers below 424 differ between the two machines that Atoll supports; newer calls share one number everywhere.
_OWN_NUMBERS = {
    "x86_64": {"umount2": 166, "pivot_root": 155, "setns": 308, "keyctl": 250, "capset": 126, "capget": 125,
               "seccomp": 317, "prctl": 157, "unshare": 272, "syncfs": 306},
    "aarch64": {"umount2": 39, "pivot_root": 41, "setns": 268, "keyctl": 219, "capset": 91, "capget": 90,
                "seccomp": 277, "prctl": 167, "unshare": 97, "syncfs": 267},
}  # fmt: skip
_SHARED_NUMBERS = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
}
SUPPORTED_MACHINES = frozenset(_OWN_NUMBERS)
NUMBERS: dict[str, int] = {**_OWN_NUMBERS.get(MACHINE, {}), **_SHARED_NUMBERS}

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000

PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
PR_SET_NAME = 15
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24

_KEYCTL_JOIN_SESSION_KEYRING = 1


def _checked(result: int, name: str, subject: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", subject or None)
    return result


def call(name: str, *arguments: object, subject: str = "") -> int:
    """Makes the system call; `subject` names its object in the error. Raises OSError."""
    return _checked(_LIBC.syscall(NUMBERS[name], *arguments), name, subject)


def call_held(name: str, *arguments: object, subject: str = "") -> int:
    """As `call`, without letting another Python thread run meanwhile."""
    return _checked(_HELD.syscall(NUMBERS[name], *arguments), name, subject)


def prctl(option: int, argument: int | bytes) -> int:
    """prctl(2) with one argument. Raises OSError."""
    value = ctypes.c_char_p(argument) if isinstance(argument, bytes) else ctypes.c_ulong(argument)
    return call("prctl", option, value, ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0), subject=str(option))


def end_with_parent(parent: int) -> None:
    """The kernel ends this process as soon as `parent`, which started it, has ended."""
    prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2


def keep_capabilities_on_id_change() -> None:
    """From now on `acting_as` costs this process no capability. Undone by entering a new user namespace."""
    prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)


@contextlib.contextmanager
def acting_as(identity: int) -> Iterator[None]:
    """File operations of this thread are those of user and group `identity` for a while."""
    _HELD.setfsgid(identity)
    _HELD.setfsuid(identity)
    try:
        yield
    finally:
        _HELD.setfsuid(0)
        _HELD.setfsgid(0)


def unshare(flags: int) -> None:
    """Moves the caller into new namespaces. Raises OSError."""
    call("unshare", ctypes.c_ulong(flags), subject=hex(flags))


def join_new_session_keyring() -> None:
    """Leaves the keyring inherited from the parent process. A kernel without keyrings is fine."""
    try:
        call("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None)
    except OSError:
        return


def pidfd_kill(pidfd: int, number: int = _signal.SIGKILL) -> bool:
    """Signals the process behind `pidfd`; False if it has ended already."""
    try:
        _signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot: together with the pid it names one process. Raises OSError."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[19])


def boot_id() -> str:
    """Differs after every boot of the machine."""
    with open("/proc/sys/kernel/random/boot_id") as source:
        return source.read().strip()


def time_namespaces_take_spawned() -> bool:
    """Whether a thread may have another time namespace for its children than its own and still call posix_spawn."""
    major, _, _ = os.uname().release.partition(".")
    return major.isdigit() and int(major) >= 6 and os.path.exists("/proc/self/ns/time_for_children")
