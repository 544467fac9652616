"""What code inside a sandbox may do: the policy of this tier in one place, with the reasons. Data only, no mechanism.

Reviewed against what Docker's default profile keeps; differences are marked. Changing a line here is a security
decision: `tests/security/test_posture.py` pins the sets.
"""

from __future__ import annotations

import errno
import socket

from atoll.isolation.linux.sys import id_ranges, syscalls
from atoll.isolation.linux.sys.caps import Cap
from atoll.isolation.linux.sys.seccomp import Rule, Test, assemble
from atoll.isolation.namespaces import spawn_thread

NAMESPACES = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
)
"""At birth; the cgroup namespace follows once the child is in its group, and a time namespace, for programs alone, in
which the time since boot is that since the first process was made."""

KEPT_CAPABILITIES: frozenset[Cap] = frozenset(
    {
        Cap.CHOWN,
        Cap.DAC_OVERRIDE,
        Cap.FOWNER,
        Cap.FSETID,
        Cap.KILL,
        Cap.SETGID,
        Cap.SETUID,
        Cap.SETPCAP,
        Cap.SETFCAP,
        Cap.NET_BIND_SERVICE,
        # Debian's ping carries this as a file capability and could not even be executed without it; packet sockets,
        # its dangerous half, are denied by the filter.
        Cap.NET_RAW,
        Cap.SYS_CHROOT,
    }
)
"""Docker's set less MKNOD and AUDIT_WRITE, which do nothing in a user namespace. All over its own ids only."""

NEWEST_SYSCALL = 466
"""Up to `removexattrat` (Linux 6.13). Newer calls answer ENOSYS until someone has looked at them."""

_NEW_NAMESPACES = (
    syscalls.CLONE_NEWNS,
    syscalls.CLONE_NEWCGROUP,
    syscalls.CLONE_NEWUTS,
    syscalls.CLONE_NEWIPC,
    syscalls.CLONE_NEWUSER,
    syscalls.CLONE_NEWPID,
    syscalls.CLONE_NEWNET,
)

# name: (x86_64, aarch64); None where a machine has no such call.
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # The mount family: a fresh user namespace would bring the capability, and most kernel escapes begin here.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "setns": (308, 268), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225),
    # The kernel itself: its modules, its replacement, its clock, its log, its accounting, its ports.
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "create_module": (174, None), "get_kernel_syms": (177, None), "query_module": (178, None),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "syslog": (103, 116),
    "iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58), "nfsservctl": (180, 42),
    "lookup_dcookie": (212, 18), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
    "_sysctl": (156, None), "modify_ldt": (154, None),
    # Large surfaces with a record of escapes that agents' programs do without.
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    # Keys are not namespaced by our namespaces alone.
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Files by handle go around directories; fanotify watches whole mounts.
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    # Memory placement across processes and NUMA nodes (Docker wants SYS_NICE for these).
    "move_pages": (279, 239), "migrate_pages": (256, 238), "mbind": (237, 235), "set_mempolicy": (238, 237),
    "get_mempolicy": (239, 236), "set_mempolicy_home_node": (450, 450),
}  # fmt: skip

# These say "not implemented", because callers then take their older path; with EPERM they would give up.
_ABSENT: dict[str, tuple[int | None, int | None]] = {
    "clone3": (435, 435),  # its flags are in memory, where a filter cannot look; clone's can be seen
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
}  # fmt: skip

_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_SAFE_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_SAFE_NETLINK = (0, 4)
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)

# clone, unshare, personality, ioctl, socket, socketpair
_ARGUMENT_NUMBERS = {"x86_64": (56, 272, 135, 16, 41, 53), "aarch64": (220, 97, 92, 29, 198, 199)}

# Whoever is root inside has the guest's ids, and with these calls the kernel asks for nothing more: it could take the
# guest's descriptors, its processor time or its turn away. (call: (x86_64, aarch64, argument that names the process))
_ABOUT_A_PROCESS = {
    "prlimit64": (302, 261, 0), "setpriority": (141, 140, 1), "ioprio_set": (251, 30, 1),
    "sched_setparam": (142, 118, 0), "sched_setscheduler": (144, 119, 0), "sched_setattr": (314, 274, 0),
    "sched_setaffinity": (203, 122, 0),
}  # fmt: skip
_GUEST = (1, spawn_thread.NUMBER)  # both of its threads: most of these calls take a thread's number too
_PRIO_USER, _IOPRIO_WHO_USER = 2, 3

# Allowed on purpose: ptrace and process_vm_* (debuggers are tools of the trade; the kernel lets them touch only
# processes of the same user with no more capabilities, and pid 1 is not dumpable), seccomp and landlock (a process may
# tighten its own belt), chroot, mknod for fifos (no capability for devices, and the root mount is nodev anyway).


def seccomp_rules(machine: str = syscalls.MACHINE) -> list[Rule]:
    """The filter as rules, for this machine's numbers."""
    column = 0 if machine == "x86_64" else 1
    clone, unshare, personality, ioctl, make_socket, socketpair = _ARGUMENT_NUMBERS[machine]
    rules = [
        Rule(clone, argument=0, test=Test.ANY_BIT, values=_NEW_NAMESPACES),
        Rule(unshare, argument=0, test=Test.ANY_BIT, values=(*_NEW_NAMESPACES, syscalls.CLONE_NEWTIME)),
        # Injecting input into a terminal that a more privileged process reads.
        Rule(ioctl, argument=1, test=Test.IN, values=(_TIOCSTI, _TIOCLINUX)),
        # vsock reaches the hypervisor, packet sockets the raw network, AF_ALG and the rest old kernel code.
        Rule(make_socket, errno.EAFNOSUPPORT, argument=0, test=Test.NOT_IN, values=_SAFE_FAMILIES),
        Rule(socketpair, errno.EAFNOSUPPORT, argument=0, test=Test.NOT_IN, values=_SAFE_FAMILIES),
        # Of netlink only routes and socket diagnostics: what `ip`, `ss` and getifaddrs need.
        Rule(
            make_socket,
            errno.EPROTONOSUPPORT,
            argument=2,
            test=Test.NOT_IN,
            values=_SAFE_NETLINK,
            when=(0, socket.AF_NETLINK),
        ),
        Rule(personality, argument=0, test=Test.NOT_IN, values=_PERSONALITIES),
    ]
    rules += [Rule(row[column], argument=row[2], values=_GUEST) for row in _ABOUT_A_PROCESS.values()]
    rules += [
        Rule(_ABOUT_A_PROCESS["setpriority"][column], argument=0, values=(_PRIO_USER,)),
        Rule(_ABOUT_A_PROCESS["ioprio_set"][column], argument=0, values=(_IOPRIO_WHO_USER,)),
    ]
    for table, error in ((_ABSENT, errno.ENOSYS), (_DENIED, errno.EPERM)):
        rules += [Rule(number, error) for numbers in table.values() if (number := numbers[column]) is not None]
    return rules


_SYSINFO = {"x86_64": 99, "aarch64": 179}


def seccomp_program(machine: str = syscalls.MACHINE) -> bytes:
    """The filter ready to install; built once in the zygote."""
    return assemble(seccomp_rules(machine), NEWEST_SYSCALL, machine)


def programs_seccomp_program(machine: str = syscalls.MACHINE) -> bytes:
    """The same for what the users start: sysinfo(2), which tells of the machine, is the guest's to answer."""
    return assemble(seccomp_rules(machine), NEWEST_SYSCALL, machine, answered=(_SYSINFO[machine],))


DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
"""Bound from the host's /dev; everything else of it is invisible. `fuse`, `kvm`, `net/tun` are left out on purpose."""

TERMINALS = 256
"""Pseudo terminals that one sandbox may have open. Without a number of its own it could take all of the machine's
(kernel.pty.max, 4096 by default, less what is set aside for the host)."""

DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

MASKED_PROC_FILES = (
    "kcore",
    "keys",
    "key-users",
    "sysrq-trigger",
    "timer_list",
    "timer_stats",
    "latency_stats",
    "sched_debug",
    "kmsg",
    "kallsyms",
    "interrupts",
    "softirqs",
    # These tell of the host: its boot line (which may hold secrets), its disks, its drivers.
    "cmdline",
    "partitions",
    "diskstats",
    "modules",
    # And these of its memory, by the page: a way for neighbours to tell each other something.
    "buddyinfo",
    "schedstat",
    "zoneinfo",
)
"""Read as empty (bound to /dev/null). Left out: what only the host's root may open anyway, which nobody inside is
(kpage*, slabinfo, vmallocinfo, iomem, ...); each mask costs 40 µs of every creation."""

MASKED_PROC_DIRECTORIES = ("acpi", "asound", "bus", "driver", "fs", "irq", "pressure", "scsi")
"""Seen as empty, read-only directories."""

SHOWN_PROC_FILES = ("cgroups", "cpuinfo", "loadavg", "meminfo", "stat", "swaps", "vmstat")
"""The machine's own are covered by files, read-only inside, that the guest keeps (guest/machine/shown.py)."""

READ_ONLY_PROC = ("sys",)

OOM_SCORE_ADJ = 500
"""Below which no process of a sandbox may lower its score: root of the host has set it once, on the first process."""

OOM_ADJ = -5
"""The guest's own score, lower than that (-294 of 1000). It is written to the older file `oom_adj`, which leaves the
lower bound that all children inherit where it is. Not the lowest: user processes have it until the guest has raised
theirs, and a sandbox in which nothing may be killed would hang at its memory limit."""

OOM_SCORE_WITHOUT_BOUND = -250
"""Of the guest, on a kernel without that file: user processes may lower theirs to it."""

HOST_IDS_PER_SANDBOX = id_ranges.HOST_IDS_PER_SANDBOX


def processes_of_a_user(pids: int) -> int:
    """How many of a sandbox's processes one of its users may have: after a user's fork bomb root can still act."""
    return pids - max(4, min(32, pids // 8))


LOOPBACK_ADDRESS = "10.0.2.15"
"""Beside 127.0.0.1 on `lo`: the source address of all egress."""

EGRESS_TCP_PORT = 15001
EGRESS_DNS_PORT = 15053
"""On 127.0.0.1 in the sandbox: where the redirect leads. Held by the first process from birth on."""

NAMESERVER = "10.0.2.3"
"""Where resolv.conf points. Any address would do: the redirect catches every question, whomever it is put to."""

CORE_LIMIT = 1
"""Bytes. 1 and not 0: a core_pattern with a pipe ignores 0 and would feed the sandbox's data to a host program."""

OPEN_FILES = (65536, 1048576)
"""Soft and hard, as far as the zygote's own hard limit allows."""
