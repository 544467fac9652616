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
import stat
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

from atoll.isolation.gvisor.addresses import ADDRESS, EGRESS_DNS_PORT, EGRESS_TCP_PORT, GATEWAY, PREFIX
from atoll.isolation.linux.disk import mounts, volume
from atoll.isolation.linux.disk.image import IMAGE, UPPER, WORK, mount_image
from atoll.isolation.linux.disk.layers import Layers
from atoll.isolation.linux.net import netlink, nft
from atoll.isolation.linux.sys import caps, oom, syscalls
from atoll.isolation.linux.sys.fork import fork_into, map_ids

IO = "io"
DISK = "disk"
"""Where the image is mounted, in this process's mount namespace only; empty for everybody else."""
GO = "go"
"""In IO; as in the guest."""
STATE = "runsc"
BUNDLE = "bundle"
ROOT, RUNTIME, MEMORY, PROGRAM, NETWORK = "root", "guest", "memory", "program", "network"
"""What else lies in the stage, beside IO, STATE and BUNDLE: all that runsc may need of the host."""
MARK = "standstill"
"""There while a server has the sandbox stand still; see standstill.py."""
HOLDER = "holder"
"""In BUNDLE: the pid of the process that holds the way out."""

HELD = (3, 4)
"""Its descriptors: the listener, the DNS socket."""

_EGRESS_BACKLOG = 4096
_OWN_END, _FAR_END = "eth0", "gate"
_MTU = 65521
"""The largest of a veth: what crosses it is copied page by page, never put on a wire."""
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
    program: str
    """runsc; `command` calls it PROGRAM."""
    memory: str
    """The directory of the image from which it goes on; "": a guest starts."""
    volumes: list[str] = field(default_factory=list)
    """Block devices; each is mounted in the stage as `volume_name` says."""
    shown: list[str] = field(default_factory=list)
    """Files and directories of the host's, read-only; in the stage as `shown_name` says."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def volume_name(number: int) -> str:
    """Of a volume in the stage."""
    return f"volume{number}"


def shown_name(number: int) -> str:
    """Of something of the host's in the stage."""
    return f"shown{number}"


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
        syscalls.keep_capabilities_on_id_change()
        own = make_namespaces(order.id_base, order.ids)
        if order.network:
            holder = Path(order.place) / BUNDLE / HOLDER
            identity = order.id_base + _HOLDERS_ID
            prepare_network(own.network, lambda tcp, dns: hold(tcp, dns, holder, identity))
        _mount(order, own.user)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        _become_root_of(own.user)
    except Exception as error:
        print(f"launch: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os.execv(order.command[0], order.command)


class Namespaces(NamedTuple):
    """Descriptors of a sandbox's own: ids, and the network that belongs to them."""

    user: int
    network: int


def make_namespaces(id_base: int, ids: int) -> Namespaces:
    """With our map; held by nothing else. What the kernel counts by user is counted for the sandbox's own ids."""
    child = fork_into(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET, owner=id_base)
    if child.pid == 0:
        while True:
            signal.pause()
    try:
        map_ids(child.pid, id_base, ids)
        made = (os.open(f"/proc/{child.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "net"))
        return Namespaces(*made)
    finally:
        syscalls.pidfd_kill(child.pidfd)
        os.waitpid(child.pid, 0)
        os.close(child.pidfd)


def _become_root_of(user_namespace: int) -> None:
    """From here on this process is nobody to the host.

    runsc runs the sentry as user 65534 of the namespace that it is started in. In the host's, all sentries would be the
    same user of the host; so each is started by a root of its own.
    """
    syscalls.call("setns", user_namespace, syscalls.CLONE_NEWUSER)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def prepare_network(inner: int, keep: Callable[[socket.socket, socket.socket], None]) -> None:
    """Moves into the network namespace `inner`, for gVisor's own network stack.

    `keep` gets the listener and the DNS socket at the end of the way out; it is called in their own namespace.

        gVisor's stack ── eth0 ═══ gate ── redirect ──► two sockets
          └─ this namespace ─┘     └─ a second one, the holder's ─┘

    The second belongs to the host's user namespace: nobody in the sandbox, not even its sentry, may change the rules;
    and no packet of the sandbox is ever seen by the namespace in which a server runs.
    """
    syscalls.unshare(syscalls.CLONE_NEWNET)
    outer = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _without_ipv6()
        syscalls.call("setns", inner, syscalls.CLONE_NEWNET)
        _without_ipv6()
        netlink.up("lo")
        netlink.veth_pair(_OWN_END, _FAR_END, outer, _MTU)
        netlink.address(_OWN_END, ADDRESS, PREFIX)
        syscalls.call("setns", outer, syscalls.CLONE_NEWNET)
        netlink.address(_FAR_END, GATEWAY, PREFIX)
        nft.install(nft.gateway_batch(EGRESS_TCP_PORT, EGRESS_DNS_PORT))
        with contextlib.suppress(OSError):  # a kernel without connection tracking
            nft.forget_soon(os.open("/proc/sys/net/netfilter", os.O_PATH | os.O_DIRECTORY))
        connections = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        questions = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with connections, questions:
            connections.bind((GATEWAY, EGRESS_TCP_PORT))
            connections.listen(_EGRESS_BACKLOG)
            questions.bind((GATEWAY, EGRESS_DNS_PORT))
            keep(connections, questions)
        syscalls.call("setns", inner, syscalls.CLONE_NEWNET)
        netlink.default_via(GATEWAY, _OWN_END)
    finally:
        os.close(outer)


def _without_ipv6() -> None:
    """For interfaces made from now on. A kernel without IPv6 needs no word."""
    with contextlib.suppress(OSError), open("/proc/sys/net/ipv6/conf/default/disable_ipv6", "w") as switch:
        switch.write("1")


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
        prepare_network(_trial_network(), lambda *_: None)
    except Exception as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _trial_network() -> int:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _mount(order: Order, userns: int) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mounts.make_private()
    _fresh(f"{order.place}/{IO}", 0o700, keep=False)
    if order.memory:
        os.close(os.open(f"{order.place}/{IO}/{GO}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
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
    opened: list[int] = []
    layers = [Layers().open(path, userns, opened) for path in order.lowers]
    # The overlay makes its own files as the user who mounted it, who must be one that the shifted mount knows.
    with syscalls.acting_as(order.id_base):
        root = mounts.overlay(layers, upper, work, volatile=True)
    placed = {name: mounts.clone(f"{order.place}/{name}", userns=userns) for name in (IO, STATE, BUNDLE)}
    placed |= {ROOT: root, RUNTIME: mounts.clone(order.runtime, attributes=mounts.RDONLY)}
    if order.memory:
        placed[MEMORY] = mounts.clone(order.memory, attributes=mounts.RDONLY, userns=userns)
    for number, device in enumerate(order.volumes):
        placed[volume_name(number)] = mounted = volume.mount(device)
        mounts.shift_owners(mounted, userns)
    for number, source in enumerate(order.shown):
        placed[shown_name(number)] = mounts.clone(source, attributes=mounts.RDONLY | mounts.NOSUID | mounts.NODEV)
    program = mounts.clone(order.program, attributes=mounts.RDONLY)
    # The helpers are unprivileged: what they open must lie where anybody may go, which the place itself is not.
    scratch = mounts.new("tmpfs", [("mode", "0755"), ("size", "1m")])
    mounts.attach_and_close(scratch, mounts.AT_FDCWD, order.stage)
    for name, mount in placed.items():
        if stat.S_ISDIR(os.fstat(mount).st_mode):
            os.mkdir(f"{order.stage}/{name}", 0o755)
        else:
            os.close(os.open(f"{order.stage}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        mounts.attach_and_close(mount, mounts.AT_FDCWD, f"{order.stage}/{name}")
    with open(f"{order.stage}/{PROGRAM}", "x"):
        pass
    mounts.attach_and_close(program, mounts.AT_FDCWD, f"{order.stage}/{PROGRAM}")
    for descriptor in (own, upper, work, *opened):
        os.close(descriptor)
    # runsc looks here for the machine's memory, which sysinfo(2) will show inside; no flag sets it.
    with open(f"{order.stage}/meminfo", "x") as meminfo:
        meminfo.write(f"MemTotal: {order.memory_mib << 10} kB\n")
    mounts.attach_and_close(mounts.clone(f"{order.stage}/meminfo"), mounts.AT_FDCWD, "/proc/meminfo")
    if order.network:
        _show_network(order.stage)


def _show_network(stage: str) -> None:
    """This process's network namespace, as a file that `config` can name.

    The release of 2024 takes a namespace with /proc/sys/net/core/rmem_default for the machine's own, and newer kernels
    show that file in every one (google/gvisor#10704): it is hidden. With no path in `config` runsc would make yet
    another namespace, and see another /proc/sys/net.
    """
    with open(f"{stage}/{NETWORK}", "x"):
        pass
    mounts.attach_and_close(mounts.clone("/proc/self/ns/net"), mounts.AT_FDCWD, f"{stage}/{NETWORK}")
    mounts.attach_and_close(
        mounts.new("tmpfs", [("mode", "0555"), ("size", "4k")]), mounts.AT_FDCWD, "/proc/sys/net/core"
    )


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
        if any(os.path.islink(f"{lower}/{name}") for lower in lowers):  # a kept disk was a root of this tier before
            raise NotADirectoryError(f"/{name} of the template is a symbolic link")
        _fresh(f"{upper}/{name}", 0o1777 if name == "tmp" else 0o755, keep=True)
    _fresh(f"{upper}/tmp/.X11-unix", 0o1777, keep=True)
