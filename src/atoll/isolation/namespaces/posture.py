"""What code inside a sandbox may do: the policy of this tier in one place, with the reasons. Data only, no mechanism.

Reviewed against what Docker's default profile keeps; differences are marked. Changing a line here is a security
decision: `attacks/src/atoll_attacks/posture.py` pins the sets.
"""

from __future__ import annotations

import errno
import resource
import socket

from atoll.isolation.linux.sys import id_ranges, syscalls
from atoll.isolation.linux.sys.caps import Cap
from atoll.isolation.linux.sys.seccomp import Rule, Test, assemble
from atoll.isolation.namespaces import spawn_thread, system_calls

NAMESPACES = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
)
"""At the fork; the cgroup namespace follows once the child is in its group, and a time namespace, for programs alone,
in which the time since boot is that since the first process was made."""

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
        Cap.NET_BIND_SERVICE,
        Cap.SYS_CHROOT,
    }
)
"""Docker's set less MKNOD and AUDIT_WRITE, which do nothing in a user namespace, NET_RAW and SETFCAP. All over its own
ids only.

Without NET_RAW nobody can make raw sockets; ping needs none (`ping_group_range`). Without SETFCAP a package cannot give
a program NET_RAW as a file capability, with which it could not even be executed here: Debian's ping then falls back to
set-uid, and works."""

ZYGOTE_CAPABILITIES: frozenset[Cap] = frozenset(
    {
        # Files of other owners: templates, layers, the files of children in /proc.
        Cap.CHOWN, Cap.DAC_OVERRIDE, Cap.DAC_READ_SEARCH, Cap.FOWNER, Cap.FSETID, Cap.SETFCAP, Cap.MKNOD,
        # Children: their ids, namespaces, mounts, clock and score, and their end.
        Cap.SETUID, Cap.SETGID, Cap.SETPCAP, Cap.SYS_ADMIN, Cap.SYS_PTRACE, Cap.SYS_RESOURCE, Cap.SYS_TIME, Cap.KILL,
    }
)  # fmt: skip
"""What the zygote keeps of root's, so far as it has it. An overlay's own accesses are made with these too.

It has no filter of its own: every program in every sandbox would inherit it and pay for it with each call."""

_NEW_NAMESPACES = (
    syscalls.CLONE_NEWNS,
    syscalls.CLONE_NEWCGROUP,
    syscalls.CLONE_NEWUTS,
    syscalls.CLONE_NEWIPC,
    syscalls.CLONE_NEWUSER,
    syscalls.CLONE_NEWPID,
    syscalls.CLONE_NEWNET,
)

_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_SAFE_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_SAFE_NETLINK = (0, 4)
_SAFE_INTERNET_KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
_SAFE_INTERNET = (0, socket.IPPROTO_ICMP, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMPV6)
_KIND_OF_SOCKET = 0xF
"""The bits of socket(2)'s second argument that are no flags."""
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)

# clone, unshare, personality, ioctl, socket, socketpair, setrlimit
_ARGUMENT_NUMBERS = {"x86_64": (56, 272, 135, 16, 41, 53, 160), "aarch64": (220, 97, 92, 29, 198, 199, 164)}

# Root inside has the guest's ids, and with these calls the kernel asks for nothing more: it could take the
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
    clone, unshare, personality, ioctl, make_socket, socketpair, setrlimit = _ARGUMENT_NUMBERS[machine]
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
        *_internet(make_socket),
        Rule(personality, argument=0, test=Test.NOT_IN, values=_PERSONALITIES),
        *_core_limit(setrlimit, _ABOUT_A_PROCESS["prlimit64"][column]),
    ]
    rules += [Rule(row[column], argument=row[2], values=_GUEST) for row in _ABOUT_A_PROCESS.values()]
    rules += [
        Rule(_ABOUT_A_PROCESS["setpriority"][column], argument=0, values=(_PRIO_USER,)),
        Rule(_ABOUT_A_PROCESS["ioprio_set"][column], argument=0, values=(_IOPRIO_WHO_USER,)),
    ]
    return rules + [Rule(number) for number in sorted(system_calls.numbers(system_calls.DENIED, machine))]


def _internet(make_socket: int) -> list[Rule]:
    """TCP, UDP and what ping needs. Raw sockets, and protocols for which distributions would load a module (SCTP, DCCP,
    L2TP, UDP-Lite), are none; nor is MPTCP, which programs do without when it is absent."""
    families = (socket.AF_INET, socket.AF_INET6)
    kinds = [
        Rule(make_socket, errno.EPERM, 1, Test.NOT_IN, _SAFE_INTERNET_KINDS, (0, family), _KIND_OF_SOCKET)
        for family in families
    ]
    protocols = [
        Rule(make_socket, errno.EPROTONOSUPPORT, 2, Test.NOT_IN, _SAFE_INTERNET, (0, family)) for family in families
    ]
    return kinds + protocols


def _core_limit(setrlimit: int, prlimit64: int) -> list[Rule]:
    """It stays what it is (`CORE_LIMIT`). Lowering it to 0, which needs no right, would have a program of the host fed
    with a core of the sandbox's choice. Programs that do so to be safe (sudo, ssh) are answered as if it were done;
    those that ask for the old limit in the same call cannot be given one, and are refused."""
    core = resource.RLIMIT_CORE
    return [
        Rule(setrlimit, 0, argument=0, values=(core,)),
        Rule(prlimit64, errno.EPERM, 2, Test.GIVEN, (3,), when=(1, core)),
        Rule(prlimit64, 0, 2, Test.GIVEN, when=(1, core)),
    ]


_SYSINFO = {"x86_64": 99, "aarch64": 179}


def seccomp_program(machine: str = syscalls.MACHINE) -> bytes:
    """The filter ready to install; built once in the zygote."""
    return _assemble(machine)


def programs_seccomp_program(machine: str = syscalls.MACHINE) -> bytes:
    """The same for what the users start: sysinfo(2), which shows the machine, is the guest's to answer."""
    return _assemble(machine, _SYSINFO[machine])


def _assemble(machine: str, *answered: int) -> bytes:
    allowed = system_calls.numbers(system_calls.ALLOWED, machine)
    return assemble(seccomp_rules(machine), system_calls.NEWEST_SYSCALL, machine, answered=answered, allowed=allowed)


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
    # These show the host: its boot line (which may hold secrets), its disks, its drivers.
    "cmdline",
    "partitions",
    "diskstats",
    "modules",
    # And these of its memory, by the page: a covert channel between neighbours.
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
"""On 127.0.0.1 in the sandbox: where the redirect leads. Held by the first process from the start."""

NAMESERVER = "10.0.2.3"
"""Where resolv.conf points. Any address would do: the redirect catches every question, whomever it is put to."""

CORE_LIMIT = 1
"""Bytes. 1 and not 0: a core_pattern with a pipe ignores 0 and would feed the sandbox's data to a host program. The
filter keeps it there."""

OPEN_FILES = (65536, 65536)
"""Soft and hard, as far as the zygote's own hard limit allows. What all processes of a sandbox have open is bounded by
its memory: an open file is 256 bytes of it at least."""
