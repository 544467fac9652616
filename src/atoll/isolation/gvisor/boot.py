"""The sandbox's first process inside gVisor, from its start until it is the guest. Runs once, never returns.

    started ── guest imported, socket bound ──► waiting        (nothing of a user known yet; this is what a pool keeps)
    waiting ── the host's word on the first connection ──► finish: name, /etc, limits, capabilities ──► guest main()

The host moves the socket file out of the shared directory before it says a word, and `finish` covers that directory
with an empty one: nobody inside can reach the guest's socket, which trusts every peer.

Standard library only, and `atoll.guest`, `atoll.isolation.linux`: it runs from the bundle (see bundle.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from atoll.guest.pid1 import checkpoint, elevate
from atoll.guest.pid1.quota import Quota
from atoll.guest.tier_parts import TierParts
from atoll.isolation.gvisor import shown, terminals
from atoll.isolation.gvisor.addresses import NAMESERVER
from atoll.isolation.gvisor.posture import GUEST_CAPABILITIES, KEPT_CAPABILITIES, RENAMING, seccomp_program
from atoll.isolation.linux.sandbox_files import write_file, write_identity
from atoll.isolation.linux.sys import caps, seccomp, syscalls
from atoll.model.sandbox import SandboxSpec

Guest = Callable[..., NoReturn]

SHARED = "/.atoll/io"
SOCKET = "guest.sock"
LISTENS = "listens"
"""A file that says so: a socket whose file moves away between its bind and its listen is lost."""
_SUDO = "/.atoll/guest/bin/sudo"
CGROUPS = "/sys/fs/cgroup"
"""The only place where runsc mounts its own controllers."""
_MNT_DETACH = 2
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_CONFIG_MAX = 32 << 20
_OPEN_FILES = (65536, 65536)

BOOT_CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SYS_RESOURCE")
"""Held until `finish` is done: unmounting, naming the host, raising limits."""


def main() -> NoReturn:
    """argv[1]: the import path of the guest (module:function)."""
    module, _, function = sys.argv[1].partition(":")
    loaded = importlib.import_module(module)
    guest: Guest = getattr(loaded, function)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{SHARED}/{SOCKET}")
    listener.listen(1024)
    parts: TierParts = loaded.begin() if hasattr(loaded, "begin") else TierParts()
    parts.shared = checkpoint.adopt(SHARED, SOCKET, LISTENS, become)
    os.close(os.open(f"{SHARED}/{LISTENS}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    spec = _take_over(listener, parts)
    guest(listener, spec, *([parts] if hasattr(loaded, "begin") else []))


def _take_over(listener: socket.socket, parts: TierParts) -> SandboxSpec:
    """Waits for the host's word, prepares, answers. Ends the process when it cannot be done."""
    connection, _ = listener.accept()
    with connection:
        try:
            message = _receive(connection)
            spec = SandboxSpec.from_json(message["spec"])
            _finish(spec, parts, elevation=bool(message["elevation"]) and not spec.no_new_privileges)
        except BaseException as error:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
            os._exit(1)
        connection.sendall(b"{}\n")
    return spec


def _receive(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(1 << 20)
        if not piece or len(data) > _CONFIG_MAX:
            raise EOFError("the host's word broke off")
        data += piece
    message: dict[str, Any] = json.loads(data)
    return message


def _finish(spec: SandboxSpec, parts: TierParts, *, elevation: bool) -> None:
    os.environ.clear()
    _name(spec)
    with contextlib.suppress(FileNotFoundError):  # there where gVisor has a network stack of its own
        os.unlink("/dev/net/tun")
        os.rmdir("/dev/net")
    if elevation:
        parts.sudo = elevate.listen()
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.symlink(_SUDO, "/usr/local/bin/sudo")  # before /usr/bin in every usual PATH
    parts.quota = Quota.adopt(f"{CGROUPS}/pids", spec.limits.pids)
    for place in reversed(_mounts_below(CGROUPS)):
        syscalls.call("umount2", place.encode(), _MNT_DETACH, subject=place)
    if left := _mounts_below(CGROUPS):
        raise OSError(f"{', '.join(left)} cannot be unmounted")
    shown.show(SHARED, spec.limits, parts.show_machine)
    _cover(SHARED)
    _mount_shared_memory(spec.limits.memory_mib)
    tty = terminals.adopt()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = _OPEN_FILES[1] if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_OPEN_FILES[0], hard), hard))
    for number in range(_last_cap() + 1):
        if number not in KEPT_CAPABILITIES:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    seccomp.install(seccomp_program())  # without no_new_privs, as long as SYS_ADMIN is held: `sudo` must work
    caps.limit_own(GUEST_CAPABILITIES, reserve=RENAMING)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    if spec.no_new_privileges:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(syscalls.PR_SET_NAME, b"atoll-guest")
    parts.forks_share_memory = False
    if tty is not None:
        parts.gvisor_terminals = True
        terminals.serve(tty)  # last: the thread is to have no more rights than the guest


def become(spec: SandboxSpec) -> None:
    """In a guest that goes on from another's image: the names that this sandbox has. Raises OSError."""
    caps.limit_own(GUEST_CAPABILITIES | RENAMING)
    try:
        _name(spec)
    finally:
        caps.limit_own(GUEST_CAPABILITIES, reserve=RENAMING)


def _name(spec: SandboxSpec) -> None:
    socket.sethostname(spec.sandbox_id)
    _write_etc(spec.sandbox_id)
    write_identity(spec.sandbox_id, spec.template_id)


def _cover(place: str) -> None:
    """Hides a mount for good under an empty, read-only one. (Unmounted, it would take the bound socket with it.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    options = b"mode=0000,size=4k"
    if libc.mount(b"none", place.encode(), b"tmpfs", _MS_RDONLY, options) != 0:
        raise OSError(ctypes.get_errno(), "cannot be covered", place)


def _mount_shared_memory(memory_mib: int) -> None:
    """What lies there is nobody's memory: no process that is ended gives it back. So it is never all of it."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"mode=1777,size={memory_mib // 2}m".encode()
    if libc.mount(b"none", b"/dev/shm", b"tmpfs", _MS_NOSUID | _MS_NODEV, options) != 0:
        raise OSError(ctypes.get_errno(), "cannot be mounted", "/dev/shm")


def _mounts_below(*places: str) -> list[str]:
    with open("/proc/self/mounts") as table:
        points = [line.split()[1] for line in table]
    return [point for point in points if any(point == place or point.startswith(place + "/") for place in places)]


def _last_cap() -> int:
    """gVisor has no file for it; the bounding set knows no number beyond the last."""
    libc = ctypes.CDLL(None)
    number = 0
    while number < 63 and libc.prctl(syscalls.PR_CAPBSET_READ, number + 1, 0, 0, 0) >= 0:
        number += 1
    return number


def _write_etc(hostname: str) -> None:
    hosts = f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    # Without a way out there is nobody at that address, and look-ups fail at once.
    resolver = f"nameserver {NAMESERVER}\noptions timeout:2 attempts:2\n"
    for name, text in (("hosts", hosts), ("hostname", hostname + "\n"), ("resolv.conf", resolver)):
        write_file(f"/etc/{name}", text.encode())
