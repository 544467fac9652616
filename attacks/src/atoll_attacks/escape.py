"""Attempts to get out of a sandbox: to the host's files, processes, devices, kernel, or to a neighbour."""

from __future__ import annotations

import socket

from atoll_attacks import judges
from atoll_attacks.attempt import Attempt, Control, Family, Impossible, Judge, Program
from atoll_attacks.scene import Scene


def _escape(
    name: str,
    goal: str,
    judge: Judge,
    control: Control | Impossible | None = None,
    *,
    program: str = "",
    arguments: tuple[str, ...] = (),
    user: str = "root",
    disturbs: bool = False,
) -> Attempt:
    """`program` is called as the attempt unless it is named."""
    act = Program(f"escape/{program or name.replace('-', '_')}", user, arguments)
    return Attempt(name, Family.ESCAPE, goal, act, judge, control or Control(), disturbs=disturbs)


_MOUNTS = [
    _escape("mount-tmpfs", "mount a file system", judges.mounted),
    _escape("mount-as-nested-root", "mount in a user namespace of one's own", judges.mounted, user="user"),
    _escape("mount-new-api", "make a mount by descriptor", judges.holds(r"fscontext")),
    _escape("mount-clone-tree", "clone a mount by descriptor and attach it", judges.mounted),
    _escape(
        "mount-set-options",
        "make a read-only mount writable by its descriptor (mount_setattr)",
        judges.may_write("core_pattern"),
        Control(needs="/proc/sys/kernel/core_pattern"),
    ),
    _escape(
        "unmask-proc",
        "take a mask off /proc",
        judges.may_write("core_pattern"),
        Control(needs="/proc/sys/kernel/core_pattern"),
    ),
    _escape(
        "write-shown-machine",
        "write what all programs are shown of the machine",
        judges.may_write("meminfo"),
        Control(needs="/proc/meminfo"),
    ),
    _escape("mount-block-device", "mount the host's disk", judges.leaked, Control(needs="canary:block")),
]

_CGROUP = [
    _escape(
        "cgroup-release-agent",
        "have the host's kernel start a program as root",
        judges.dropped,
        Control(needs="/sys/fs/cgroup/memory"),
    ),
    _escape(
        "cgroup-release-agent-nested",
        "the same with a user and cgroup namespace of one's own",
        judges.dropped,
        Impossible("the kernel itself refuses release_agent outside its first user namespace"),
        program="cgroup_release_agent",
        arguments=("nested",),
        user="user",
    ),
    _escape(
        "cgroup-files",
        "reach the control groups of the host",
        judges.may_write("cgroup.procs"),
        Control(needs="/sys/fs/cgroup/memory/cgroup.procs"),
    ),
]

_WRITES = [
    _escape(f"write-{name}", goal, judges.may_write(path.rpartition("/")[2]), Control(needs=path),
            program="open_for_writing", arguments=(path,))
    for name, path, goal in (
        ("core-pattern", "/proc/sys/kernel/core_pattern", "have the kernel start a program for a crash"),
        ("modprobe-path", "/proc/sys/kernel/modprobe", "have the kernel start a program for a module"),
        ("hotplug-helper", "/sys/kernel/uevent_helper", "have the kernel start a program for a device"),
        ("sysrq", "/proc/sysrq-trigger", "crash or restart the machine"),
        ("panic-on-oom", "/proc/sys/vm/panic_on_oom", "make the machine's settings one's own"),
        ("randomize-va", "/proc/sys/kernel/randomize_va_space", "weaken the kernel's defences"),
        ("drop-caches", "/proc/sys/vm/drop_caches", "slow the machine down"),
        ("host-pid-max", "/proc/sys/kernel/pid_max", "starve the machine of process ids"),
        ("printk", "/proc/sys/kernel/printk", "silence the kernel"),
        ("oom-of-others", "/proc/sys/vm/overcommit_memory", "change how the machine hands out memory")
    )
]  # fmt: skip

_PROCESSES = [
    _escape("ptrace-first-process", "take over the guest", judges.traced),
    _escape("ptrace-seize", "take over the guest without stopping it", judges.traced),
    _escape("read-memory", "read the guest's memory", judges.memory_open),
    _escape("write-memory", "write the guest's memory", judges.memory_open),
    _escape("process-vm-readv", "read the guest's memory by system call", judges.leaked),
    _escape("environment-of-first-process", "read the server's environment", judges.leaked),
    _escape("environment-of-threads", "the same by the task directory", judges.leaked),
    _escape("root-of-first-process", "enter the host by /proc/1/root", judges.leaked),
    _escape("descriptors-of-first-process", "open what the guest has open", judges.holds_what_target_holds),
    _escape("steal-descriptors", "duplicate what the guest has open", judges.holds_what_target_holds),
    _escape(
        "overwrite-program",
        "overwrite the program that the host runs (/proc/1/exe)",
        judges.holds_program_of_target,
        Control(Program("escape/overwrite_program_control"), judge=judges.may_write("/victim")),
    ),
    _escape("find-host-processes", "see the host's processes", judges.leaked),
    _escape("kill-host-process", "end a process of the host", judges.killed),
    _escape("kill-by-pidfd", "the same by descriptor", judges.killed),
    _escape("kill-host-thread", "the same by thread", judges.killed),
    _escape(
        "kill-everything",
        "end every process that can be reached",
        judges.killed,
        Impossible("it would end everything on this machine"),
        disturbs=True,
    ),
    _escape(
        "priority-of-host-process",
        "starve a process of the host",
        lambda scene: "changed a host process's priority" if _nice(scene.world.places["victim"]) == 19 else None,
    ),
    _escape(
        "limits-of-host-process",
        "cut a host process's limits",
        lambda scene: "changed a host process's limits" if _files(scene.world.places["victim"]) == 7 else None,
    ),
]


def _nice(pid: int) -> int:
    import os

    return os.getpriority(os.PRIO_PROCESS, pid)


def _files(pid: int) -> int:
    import resource

    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]


_NAMESPACES = [
    _escape(
        "nsenter-mount",
        "join the host's mount namespace by /proc/1/ns",
        judges.leaked,
        Control(Program("escape/nsenter_mount_control")),
    ),
    _escape(
        "nsenter-pidfd",
        "join namespaces by a process descriptor",
        judges.leaked,
        Control(Program("escape/nsenter_pidfd_control")),
    ),
    *(
        _escape(
            f"new-namespace-{kind}",
            f"make a {kind} namespace, with every capability in it",
            judges.new_namespace(kind),
            program="new_namespace",
            arguments=(kind,),
            user="user",
        )
        for kind in ("user", "mnt", "net", "ipc", "uts", "cgroup")
    ),
    _escape("clone-user-namespace", "the same by clone", judges.new_namespace("user"), user="user"),
    _escape(
        "clone3-user-namespace",
        "the same by clone3, whose flags no filter can see",
        judges.new_namespace("user"),
        user="user",
    ),
]

_OBJECTS = [
    _escape("bpf", "load code into the kernel", judges.holds(r"bpf-map")),
    _escape("perf", "watch the kernel", judges.holds(r"perf_event")),
    _escape("userfaultfd", "stop the kernel in the middle of a copy", judges.holds(r"userfaultfd")),
    _escape(
        "io-uring",
        "go around the filter with io_uring",
        judges.holds(r"io_uring"),
        Control(needs="/proc/sys/kernel/io_uring_disabled"),
    ),
    _escape("fanotify", "watch every file of a mount", judges.holds(r"fanotify")),
    _escape("file-handle", "open a host file by its handle", judges.leaked),
    _escape("keyring", "read the host's keys", judges.leaked, Control(Program("escape/keyring_control"))),
    _escape(
        "kernel-module",
        "load a module",
        judges.changed("modules"),
        Impossible("a module would have to be built for this kernel and loaded into it"),
    ),
    _escape(
        "unload-module",
        "unload the host's modules",
        judges.changed("modules"),
        Impossible("it would take a module away from this machine"),
    ),
    _escape(
        "kexec",
        "start another kernel",
        judges.changed("kexec"),
        Impossible("it would load another kernel on this machine"),
    ),
    _escape("reboot", "restart the machine", judges.changed("boot"), Impossible("it would restart this machine")),
    _escape(
        "set-clock", "set the machine's clock", judges.changed("clock"), Impossible("it would set this machine's clock")
    ),
    _escape("host-name", "rename the machine", judges.changed("host name"), Impossible("it would rename this machine")),
    _escape(
        "domain-name",
        "rename the machine's domain",
        judges.changed("domain name"),
        Impossible("it would rename this machine's domain"),
    ),
    _escape(
        "swap", "put swap on the machine", judges.changed("swaps"), Impossible("it would change this machine's swap")
    ),
    _escape("kernel-log", "read the kernel's log", judges.leaked, Control(needs="/dev/kmsg")),
    _escape("kernel-log-device", "write the kernel's log", judges.wrote_kernel_log, Control(needs="/dev/kmsg")),
    _escape(
        "kernel-log-proc", "take the kernel's messages away", judges.may_read("/kmsg"), Control(needs="/proc/kmsg")
    ),
    _escape("terminal-input", "type into a terminal that a more privileged program reads", judges.dropped),
]

_SOCKETS = [
    _escape("abstract-socket", "reach a service of the host by an abstract name", judges.leaked),
    _escape("path-socket", "reach a service of the host by a socket file", judges.leaked),
    _escape("shared-memory", "read shared memory of the host", judges.leaked),
    _escape("dev-shm", "read POSIX shared memory of the host", judges.leaked),
    *(
        _escape(
            f"socket-{name}",
            goal,
            judges.holds_socket(family),
            program="open_socket",
            arguments=(str(int(family)), str(int(kind)), str(protocol)),
        )
        for name, family, kind, protocol, goal in (
            ("packet", socket.AF_PACKET, socket.SOCK_RAW, 0, "send raw frames"),
            ("vsock", socket.AF_VSOCK, socket.SOCK_STREAM, 0, "reach the hypervisor"),
        )
    ),
    _escape(
        "socket-protocols",
        "make raw packets, or load old network code into the kernel",
        judges.holds_socket(socket.AF_INET, socket.AF_INET6),
    ),
    *(
        _escape(
            name,
            goal,
            judges.holds_option(level, option, value),
            program="set_socket_option",
            arguments=(str(level), str(option), str(value)),
        )
        for name, level, option, value, goal in (
            ("socket-mark", socket.SOL_SOCKET, 36, 7, "mark packets for the host's own routes and rules (SO_MARK)"),
            ("socket-transparent", socket.SOL_IP, 19, 1, "speak with addresses of others (IP_TRANSPARENT)"),
        )
    ),
    _escape(
        "socket-netfilter",
        "change the rules that hold the network",
        judges.holds_socket(socket.AF_NETLINK, protocol=12),
        program="open_socket",
        arguments=("16", "3", "12"),
    ),
    _escape(
        "socket-audit",
        "speak to the kernel's audit",
        judges.holds_socket(socket.AF_NETLINK, protocol=15),
        program="open_socket",
        arguments=("16", "3", "15"),
    ),
]

_FILES = [
    _escape("chroot-breakout", "climb out of the changed root", judges.leaked),
    _escape(
        "leaked-descriptor",
        "use a directory that the host left open",
        judges.leaked,
        Control(Program("escape/leaked_descriptor_control")),
    ),
    _escape(
        "leaked-working-directory",
        "use a working directory outside",
        judges.leaked,
        Control(Program("escape/leaked_working_directory_control")),
    ),
    _escape("plain-path", "read a host file by its path", judges.leaked),
    _escape("every-device", "open a device of the host", judges.holds_device),
    _escape("make-devices", "make a device of one's own and open it", judges.holds_device),
    _escape(
        "kernel-memory",
        "read the kernel's memory",
        judges.printed(lambda scene: "7f454c46"),
        Control(needs="/proc/kcore"),
    ),
    _escape(
        "kernel-addresses",
        "learn where the kernel lies",
        judges.printed(lambda scene: _first_line("/proc/kallsyms")),
        Control(needs="/proc/kallsyms"),
    ),
    _escape("boot-line", "learn the host's boot line", judges.printed(lambda scene: _first_line("/proc/cmdline"))),
    _escape(
        "host-paths",
        "learn paths of the host from the mount table",
        judges.printed(lambda scene: scene.world.directory.name if scene.sandbox is None else _data(scene)),
        Control(Program("escape/host_paths_control")),
    ),
    _escape("set-user-id", "be the host's root by a set-user-id program", judges.host_identity),
    _escape("unmapped-user", "be a user whom nobody mapped", judges.host_identity),
    _escape("root-by-sudo", "be the host's root by sudo", judges.host_identity, user="user"),
]


def _first_line(path: str) -> str:
    with open(path) as source:
        return source.readline()


def _data(scene: Scene) -> str:
    return str(scene.world.data_dir) if scene.world.data_dir is not None else "no such words"


ATTEMPTS: tuple[Attempt, ...] = (
    *_MOUNTS, *_CGROUP, *_WRITES, *_PROCESSES, *_NAMESPACES, *_OBJECTS, *_SOCKETS, *_FILES
)  # fmt: skip
