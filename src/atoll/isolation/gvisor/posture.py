"""What code in a gVisor sandbox may not ask of gVisor's kernel: a filter that this kernel itself applies. Data only.

The wall to the host is the sentry; this filter guards the guest. In gVisor the guest's ids suffice to signal process
1 as any other (Linux does not), so every call that can name it as a target is denied. Namespaces of its own would give
a user of the sandbox all capabilities in them, and with those gVisor's mounts and controllers.
"""

from __future__ import annotations

import errno

from atoll.isolation.linux.sys import syscalls
from atoll.isolation.linux.sys.caps import Cap
from atoll.isolation.linux.sys.seccomp import Rule, Test, assemble

KEPT_CAPABILITIES = frozenset(
    {
        Cap.CHOWN, Cap.DAC_OVERRIDE, Cap.FOWNER, Cap.FSETID, Cap.KILL, Cap.SETGID, Cap.SETUID, Cap.SETPCAP,
        Cap.NET_BIND_SERVICE, Cap.SYS_CHROOT,
    }
)  # fmt: skip
"""What the sandbox's root has, as in the namespaces tier."""

GUEST_CAPABILITIES = KEPT_CAPABILITIES | {Cap.SYS_RESOURCE}
"""The guest alone sets limits anew for a living sandbox; no program that it starts has this one."""

RENAMING = frozenset({Cap.SYS_ADMIN})
"""Permitted to the guest, and effective only while it takes another host name: in a copy of a sandbox that ran."""

NEWEST_SYSCALL = 466
"""As in the namespaces tier; gVisor knows fewer."""

_GUEST = 1
_NEW_NAMESPACES = (
    syscalls.CLONE_NEWNS, syscalls.CLONE_NEWCGROUP, syscalls.CLONE_NEWUTS, syscalls.CLONE_NEWIPC,
    syscalls.CLONE_NEWUSER, syscalls.CLONE_NEWPID, syscalls.CLONE_NEWNET,
)  # fmt: skip

_NUMBERS = {
    "clone": (56, 220), "clone3": (435, 435), "unshare": (272, 97), "setns": (308, 268), "fcntl": (72, 25),
    "ioctl": (16, 29), "setpriority": (141, 140), "ioprio_set": (251, 30), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "lgetxattr": (192, 9), "llistxattr": (195, 12),
    "close_range": (436, 436),
}  # fmt: skip
"""By x86_64 and aarch64."""

# call: (numbers, arguments that name a process)
_ABOUT_A_PROCESS: dict[str, tuple[tuple[int, int], tuple[int, ...]]] = {
    "kill": ((62, 129), (0,)), "tkill": ((200, 130), (0,)), "tgkill": ((234, 131), (0, 1)),
    "rt_sigqueueinfo": ((129, 138), (0,)), "rt_tgsigqueueinfo": ((297, 240), (0, 1)),
    "ptrace": ((101, 117), (1,)), "process_vm_readv": ((310, 270), (0,)), "process_vm_writev": ((311, 271), (0,)),
    "prlimit64": ((302, 261), (0,)), "setpriority": ((141, 140), (1,)), "ioprio_set": ((251, 30), (1,)),
    "sched_setparam": ((142, 118), (0,)), "sched_setscheduler": ((144, 119), (0,)), "sched_setattr": ((314, 274), (0,)),
    "sched_setaffinity": ((203, 122), (0,)), "move_pages": ((279, 239), (0,)), "migrate_pages": ((256, 238), (0,)),
}  # fmt: skip
_PRIO_USER, _IOPRIO_WHO_USER = 2, 3
_F_SETOWN, _F_SETOWN_EX = 8, 15
_FIOSETOWN, _SIOCSPGRP = 0x8901, 0x8902
_GUESTS_GROUP = 0xFFFFFFFF
"""-1 as an owner: the process group 1, which is the guest's."""


def seccomp_rules(machine: str = syscalls.MACHINE) -> list[Rule]:
    """The filter as rules, for this machine's numbers."""
    column = 0 if machine == "x86_64" else 1
    of = {name: numbers[column] for name, numbers in _NUMBERS.items()}
    return [
        Rule(of["clone"], argument=0, test=Test.ANY_BIT, values=_NEW_NAMESPACES),
        Rule(of["unshare"], argument=0, test=Test.ANY_BIT, values=(*_NEW_NAMESPACES, syscalls.CLONE_NEWTIME)),
        Rule(of["clone3"], errno.ENOSYS),  # its flags are in memory, where a filter cannot look
        Rule(of["setns"]),
        # The owner of a descriptor gets the signal that its reader chooses, SIGKILL too.
        Rule(of["fcntl"], argument=2, values=(_GUEST, _GUESTS_GROUP), when=(1, _F_SETOWN)),
        Rule(of["fcntl"], errno.EINVAL, argument=1, values=(_F_SETOWN_EX,)),
        Rule(of["ioctl"], argument=1, values=(_FIOSETOWN, _SIOCSPGRP)),
        *(
            Rule(numbers[column], argument=place, values=(_GUEST,))
            for numbers, places in _ABOUT_A_PROCESS.values()
            for place in places
        ),
        Rule(of["setpriority"], argument=0, values=(_PRIO_USER,)),
        Rule(of["ioprio_set"], argument=0, values=(_IOPRIO_WHO_USER,)),
        # gVisor of 2024 has none of these; a release that does shall not open a way around the lines above.
        *(Rule(of[name], errno.ENOSYS) for name in ("pidfd_open", "pidfd_getfd", "pidfd_send_signal")),
        # gVisor of 2024 says EINVAL of a range without an end, and GLib then starts no program at all (no desktop).
        Rule(of["close_range"], errno.ENOSYS),
        # gVisor of 2024 says EBADF of every symbolic link, and `ls -l` complains of it; of files it keeps none either.
        *(Rule(of[name], errno.EOPNOTSUPP) for name in ("lgetxattr", "llistxattr")),
    ]


def seccomp_program() -> bytes:
    """The filter ready to install."""
    return assemble(seccomp_rules(), NEWEST_SYSCALL)
