"""What every program begins with: system calls by name, the canaries' places (`W`), and the way to hold a gain.

Only the standard library, and only what a minimal Python has. `W` has the places of the host's canaries, as an attacker
who knows the machine would know them; the secrets themselves are not in it. Uploaded beside each program.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

TAG: str = sys.argv[1]
W: dict[str, Any] = json.loads(sys.argv[2])
ARGUMENTS: list[str] = sys.argv[3:]
TARGET: int = W["target"]

GVISOR = os.uname().release == "4.4.0"
"""Its kernel says so always. What is a bomb for it is small: the host's kernel has to do each step several times."""

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

NR = {
    "ptrace": (101, 117), "mount": (165, 40), "umount2": (166, 39), "setns": (308, 268), "unshare": (272, 97),
    "clone": (56, 220), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "open_by_handle_at": (304, 265), "init_module": (175, 105),
    "kexec_load": (246, 104), "reboot": (169, 142), "syslog": (103, 116), "fanotify_init": (300, 262),
    "shmget": (29, 194), "shmat": (30, 196), "mq_open": (240, 180), "sethostname": (170, 161),
    "setdomainname": (171, 162), "clock_settime": (227, 112), "adjtimex": (159, 171), "quotactl": (179, 60),
    "swapon": (167, 224), "acct": (163, 89), "pivot_root": (155, 41), "process_vm_readv": (310, 270),
    "kcmp": (312, 272), "prlimit64": (302, 261), "sched_setscheduler": (144, 119), "setpriority": (141, 140),
    "sched_setaffinity": (203, 122), "ioprio_set": (251, 30), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "iopl": (172, -1), "delete_module": (176, 106), "msgget": (68, 186), "semget": (64, 190), "semctl": (66, 191),
    "move_pages": (279, 239), "migrate_pages": (256, 238),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "open_tree": (428, 428),
    "move_mount": (429, 429), "pidfd_open": (434, 434), "clone3": (435, 435), "pidfd_getfd": (438, 438),
    "io_uring_setup": (425, 425), "pidfd_send_signal": (424, 424), "process_madvise": (440, 440),
    "mount_setattr": (442, 442), "memfd_secret": (447, 447), "statmount": (457, 457),
}  # fmt: skip
"""Numbers of system calls: (x86_64, aarch64)."""

CLONE = {
    "mnt": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
    "net": 0x40000000, "time": 0x80,
}  # fmt: skip


def call(name: str, *arguments: object) -> int:
    """The system call. Raises OSError if it fails."""
    ready = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    number = NR[name][0 if platform.machine() == "x86_64" else 1]
    result: int = libc.syscall(ctypes.c_long(number), *ready)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def hold(gains: Iterable[object] | None = None, seconds: float = 20.0) -> None:
    """Keeps what was gained until the host has looked; with a list of gains only if there is one. Raises OSError."""
    if gains is not None and all(one is None for one in gains):
        raise OSError("nothing was gained")
    print("HOLDING", flush=True)
    time.sleep(seconds)


def in_child(act: Callable[[], object]) -> None:
    """Runs `act` in a child that keeps what it gained."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            hold()
        except OSError as error:
            print("child:", error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def attempt(act: Callable[..., Any], *arguments: Any) -> Any:
    """One of several ways: its result, or None where it failed, which is printed."""
    try:
        return act(*arguments)
    except (OSError, ValueError) as error:
        print(type(error).__name__, error, flush=True)
        return None


def show(path: str, limit: int = 65536) -> None:
    """Prints the beginning of a file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    print(os.read(descriptor, limit).decode("latin-1"), flush=True)
