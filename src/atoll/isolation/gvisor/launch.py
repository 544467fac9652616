"""Run in a fresh interpreter, as host root: prepares one sandbox's cgroup and mounts, then becomes `runsc run`.

Everything is made in a mount namespace of its own: when runsc's helpers have taken what they need, the rest goes with
this process, and no mount is ever seen, or left behind, in the host's own mount namespace.

The order comes as JSON on standard input (see `Order`); standard output and error go where the caller put them.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from atoll.isolation.gvisor.addresses import EGRESS_DNS_PORT, EGRESS_TCP_PORT, LOOPBACK_ADDRESS
from atoll.isolation.linux.disk import mounts
from atoll.isolation.linux.disk.image import IMAGE, mount_image
from atoll.isolation.linux.net import netlink, nft
from atoll.isolation.linux.sys import caps, oom, syscalls
from atoll.isolation.linux.sys.fork import fork_into, map_ids

UPPER = "upper"
WORK = "work"
IO = "io"
DISK = "disk"
"""Where the image is mounted, in this process's mount namespace only; empty for everybody else."""
STATE = "runsc"
BUNDLE = "bundle"
HOLDER = "holder"
"""In BUNDLE: the pid of the process that holds the way out."""

HELD = (3, 4)
"""Its descriptors: the listener, the DNS socket."""

_EGRESS_BACKLOG = 4096
_HOLDERS_ID = 65533
"""Within the sandbox's range."""
_STAGES = ("/mnt", "/srv", "/media", "/opt", "/usr")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be launched. All paths absolute; `stage` names the scratch mount point that `config` speaks of."""

    place: str
    """The sandbox's own directory (0700)."""
    lowers: list[str]
    runtime: str
    id_base: int
    ids: int
    groups: list[str]
    """cgroup.procs files to write ourselves into."""
    stage: str
    network: bool
    """Whether the sandbox gets a network namespace with a way out; otherwise runsc gives it one without."""
    disk: bool
    """Whether what the sandbox writes goes to the image in `place`; otherwise to a directory there."""
    memory_mib: int
    """What gVisor shows as the size of the machine."""
    command: list[str]

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def choose_stage(needed: list[str]) -> str:
    """A directory that a scratch file system may hide without hiding anything that runsc needs. Raises OSError."""
    for place in _STAGES:
        used = any(os.path.realpath(path).startswith(place + "/") for path in needed)
        if os.path.isdir(place) and not os.path.islink(place) and not used:
            return place
    raise OSError(f"every one of {', '.join(_STAGES)} is missing or in use")


def main() -> NoReturn:
    """Ends as runsc does; prints the reason and ends with 1 when it does not come to that."""
    try:
        # Some event loops leave copies of our standard descriptors open: they are nobody's here.
        syscalls.call("close_range", 3, 0x7FFFFFFF, 0)
        oom.make_ordinary()  # it is the sandbox's from here on
        order = Order(**json.load(sys.stdin))
        # Of gVisor's own processes: with 0 a core_pattern with a pipe would feed a program of the host.
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
        for path in order.groups:
            with open(path, "w") as procs:
                procs.write("0")
        if order.network:
            hold(*prepare_network(), Path(order.place) / BUNDLE / HOLDER, order.id_base + _HOLDERS_ID)
        _mount(order)
    except Exception as error:
        print(f"launch: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.execv(order.command[0], order.command)


def prepare_network() -> tuple[socket.socket, socket.socket]:
    """Moves into a network namespace in which everything that would leave arrives at the two sockets that it returns.

    It belongs to the host's user namespace: nobody in the sandbox, not even its sentry, may change the rules.
    """
    syscalls.unshare(syscalls.CLONE_NEWNET)
    netlink.loopback_up(LOOPBACK_ADDRESS)
    nft.install(nft.redirect_batch(EGRESS_TCP_PORT, EGRESS_DNS_PORT))
    with contextlib.suppress(OSError):  # a kernel without connection tracking
        nft.forget_soon(os.open("/proc/sys/net/netfilter", os.O_PATH | os.O_DIRECTORY))
    # The sentry binds for the sandbox's programs, and is nobody in this namespace: without it no port below 1024.
    with contextlib.suppress(OSError), open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w") as lowest:
        lowest.write("0")
    # Bound to loopback: only then are answers translated back.
    connections = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    questions = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    connections.bind(("127.0.0.1", EGRESS_TCP_PORT))
    connections.listen(_EGRESS_BACKLOG)
    questions.bind(("127.0.0.1", EGRESS_DNS_PORT))
    # Last: without the rules a route would send packets in a circle.
    netlink.default_over_loopback(LOOPBACK_ADDRESS)
    return connections, questions


def hold(connections: socket.socket, questions: socket.socket, pid_file: Path, identity: int) -> None:
    """Starts a process that does nothing but have both, as HELD, for as long as the sandbox lives; writes its pid.

    It is in the sandbox's groups, and so ends with it; but outside gVisor, where nobody inside can reach it. It has no
    capability, and `identity`, a host id of the sandbox's that no other process has.
    """
    sources = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, max(HELD) + 1) for one in (connections, questions)]
    pid = os.fork()
    if pid == 0:
        try:
            _become_holder(sources, identity)
        finally:
            os._exit(1)
    pid_file.write_text(str(pid))
    for descriptor in sources:
        os.close(descriptor)
    for one in (connections, questions):
        one.close()


def _become_holder(sources: list[int], identity: int) -> NoReturn:
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for source, target in [*((null, number) for number in range(3)), *zip(sources, HELD, strict=True)]:
        os.dup2(source, target)
    syscalls.call("close_range", max(HELD) + 1, 0x7FFFFFFF, 0)
    os.chdir("/")
    os.setgroups([])
    caps.limit_bounding(frozenset(), caps.last_cap())
    os.setresgid(identity, identity, identity)
    os.setresuid(identity, identity, identity)
    caps.limit_own(frozenset())
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    sleep = shutil.which("sleep", path="/usr/bin:/bin")
    if sleep is not None:
        os.execve(sleep, [sleep, "infinity"], {})
    while True:
        signal.pause()


def try_network() -> NoReturn:
    """For a process of its own: ends with 0 where `prepare_network` works, else says why not."""
    try:
        prepare_network()
    except Exception as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _mount(order: Order) -> None:
    userns = _user_namespace(order.id_base, order.ids)
    syscalls.keep_capabilities_on_id_change()
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mounts.make_private()
    _fresh(f"{order.place}/{IO}", 0o700, keep=False)
    written = order.place
    if order.disk:
        written = f"{order.place}/{DISK}"
        _fresh(written, 0o700, keep=True)
        mounts.attach_and_close(mount_image(Path(order.place) / IMAGE), mounts.AT_FDCWD, written)
    for name, mode in ((UPPER, 0o755), (WORK, 0o700)):
        _fresh(f"{written}/{name}", mode, keep=name == UPPER)
    _prepare_upper(f"{written}/{UPPER}", order.lowers)
    own = mounts.clone(written, userns=userns)
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    upper, work = (os.open(name, flags, dir_fd=own) for name in (UPPER, WORK))
    layers = [mounts.clone(path, userns=userns) for path in order.lowers]
    # The overlay makes its own files as the user who mounted it, who must be one that the shifted mount knows.
    with syscalls.acting_as(order.id_base):
        root = mounts.overlay(layers, upper, work, volatile=True)
    shared = mounts.clone(f"{order.place}/{IO}", userns=userns)
    runtime = mounts.clone(order.runtime, attributes=mounts.RDONLY)
    # The helpers are unprivileged: what they open must lie where anybody may go, which the place itself is not.
    scratch = mounts.new("tmpfs", [("mode", "0755"), ("size", "1m")])
    mounts.attach_and_close(scratch, mounts.AT_FDCWD, order.stage)
    for name, mount in (("root", root), ("io", shared), ("guest", runtime)):
        os.mkdir(f"{order.stage}/{name}", 0o755)
        mounts.attach_and_close(mount, mounts.AT_FDCWD, f"{order.stage}/{name}")
    for descriptor in (userns, own, upper, work, *layers):
        os.close(descriptor)
    # runsc looks here for the machine's memory, which sysinfo(2) will show inside; no flag sets it.
    with open(f"{order.stage}/meminfo", "x") as meminfo:
        meminfo.write(f"MemTotal: {order.memory_mib << 10} kB\n")
    mounts.attach_and_close(mounts.clone(f"{order.stage}/meminfo"), mounts.AT_FDCWD, "/proc/meminfo")


def _fresh(path: str, mode: int, *, keep: bool) -> None:
    """An empty directory; `keep`: one that is there already stays as it is."""
    if not keep:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
        os.chmod(path, mode)


def _prepare_upper(upper: str, lowers: list[str]) -> None:
    """Mount points for runsc, and a /tmp that is not empty: over an empty one it would put a file system in memory.

    A layer may hold a symbolic link under any of these names; then the template is not for this tier.
    """
    for name, mode in ((".atoll", 0o755), (".atoll/io", 0o700), (".atoll/guest", 0o755)):
        _fresh(f"{upper}/{name}", mode, keep=True)
    for name in ("tmp", "proc", "sys", "dev"):
        if any(os.path.islink(f"{lower}/{name}") for lower in lowers):
            raise NotADirectoryError(f"/{name} of the template is a symbolic link")
        _fresh(f"{upper}/{name}", 0o1777 if name == "tmp" else 0o755, keep=True)
    _fresh(f"{upper}/tmp/.X11-unix", 0o1777, keep=True)


def _user_namespace(id_base: int, ids: int) -> int:
    """A descriptor of a user namespace with our map; held by nothing else."""
    child = fork_into(syscalls.CLONE_NEWUSER)
    if child.pid == 0:
        while True:
            signal.pause()
    try:
        map_ids(child.pid, id_base, ids)
        return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        syscalls.pidfd_kill(child.pidfd)
        os.waitpid(child.pid, 0)
        os.close(child.pidfd)
