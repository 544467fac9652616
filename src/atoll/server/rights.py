"""How a process that strangers speak to gives up what it does not need, before it speaks to anyone.

As root: a mount namespace whose root holds Python, its packages, /etc and the few directories that were named, all else
read-only or absent; a user id of its own; no capability, ever. As any user: no new privileges, a system call filter
(no program is ever started), no core files, not to be traced, limited memory.
"""

from __future__ import annotations

import errno
import os
import pwd
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atoll.isolation.linux.disk import mounts
from atoll.isolation.linux.sys import caps, seccomp, syscalls
from atoll.isolation.linux.sys.seccomp import Rule
from atoll.isolation.namespaces import posture, system_calls

_USERS = range(65500, 61184, -1)
"""Ids that systems keep for services without a name (systemd's dynamic users)."""

_DEVICES = ("/dev/null", "/dev/random", "/dev/urandom", "/dev/zero")
_SYSTEM = ("/etc", "/usr", "/lib", "/lib64", "/run/systemd/resolve", "/run/postgresql", "/var/run")

# execve, execveat, ptrace, process_vm_readv, process_vm_writev, chroot, kcmp, pidfd_getfd, mknod(at): nothing of it is
# ever asked for by a proxy and a database client.
_NEEDLESS = {
    "x86_64": (59, 322, 101, 310, 311, 161, 312, 438, 133, 259),
    "aarch64": (221, 281, 117, 270, 271, 51, 272, 438, 33),
}


@dataclass(frozen=True, slots=True)
class Rights:
    """What is left. `user`: the host id to become, None: the user who starts it. Paths are those of the host."""

    user: int | None
    writable: tuple[Path, ...] = ()
    readable: tuple[Path, ...] = ()
    memory_mib: int = 2048


def unused_users(count: int) -> list[int]:
    """User ids that belong to nobody on this machine; the same every time, unless somebody has taken one."""
    taken = {entry.pw_uid for entry in pwd.getpwall()}
    return [user for user in _USERS if user not in taken][:count]


def give_up(rights: Rights, scratch: Path) -> None:
    """Reduces this process to `rights`, for good. `scratch`: an empty directory. Raises OSError.

    Single-threaded only: the kernel changes the calling thread.
    """
    if rights.user is not None:
        _enter_root_of(rights, scratch)
    resource.setrlimit(resource.RLIMIT_CORE, (posture.CORE_LIMIT, posture.CORE_LIMIT))
    resource.setrlimit(resource.RLIMIT_DATA, (rights.memory_mib << 20, rights.memory_mib << 20))
    syscalls.join_new_session_keyring()
    if rights.user is not None:
        os.setgroups([])
        caps.limit_bounding(frozenset(), caps.last_cap())
        os.setresgid(rights.user, rights.user, rights.user)
        os.setresuid(rights.user, rights.user, rights.user)
        caps.limit_own(frozenset())
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    rules = [*posture.seccomp_rules(), *(Rule(number, errno.EPERM) for number in _NEEDLESS[syscalls.MACHINE])]
    allowed = system_calls.numbers(system_calls.ALLOWED)
    seccomp.install(seccomp.assemble(rules, system_calls.NEWEST_SYSCALL, allowed=allowed))
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


def _enter_root_of(rights: Rights, scratch: Path) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC)
    mounts.make_private()
    root = mounts.new("tmpfs", [("size", "1m"), ("mode", "0755")], attributes=mounts.NOSUID | mounts.NODEV)
    try:
        mounts.attach(root, mounts.AT_FDCWD, str(scratch))
        readable = mounts.RDONLY | mounts.NOSUID | mounts.NODEV
        # A directory around its own would bring the host's in between, through which this user may not pass.
        around = {parent for path in (*rights.readable, *rights.writable) for parent in path.parents}
        python = [path for path in _python() if path not in around]
        for path in _outermost([*map(Path, _SYSTEM), *python, *rights.readable]):
            _show(path, scratch, root, readable)
        for device in _DEVICES:
            _show(Path(device), scratch, root, mounts.NOSUID | mounts.NOEXEC)
        for path in rights.writable:
            _show(path, scratch, root, mounts.NOSUID | mounts.NODEV | mounts.NOEXEC)
        # Of processes only its own: `hidepid` is a property of this mount.
        proc = mounts.new("proc", [("hidepid", "invisible")], attributes=mounts.NOSUID | mounts.NODEV | mounts.NOEXEC)
        _place(scratch, Path("/proc"), is_directory=True)
        mounts.attach_and_close(proc, root, "proc")
        mounts.enter_root(root)
    finally:
        os.close(root)


def _python() -> Iterable[Path]:
    """Where modules and libraries of this interpreter are loaded from."""
    yield from (Path(sys.prefix), Path(sys.base_prefix))
    yield from (Path(entry) for entry in sys.path if entry and os.path.isdir(entry))


def _outermost(paths: Sequence[Path]) -> list[Path]:
    """Without those that lie below another one."""
    resolved = dict.fromkeys(Path(os.path.abspath(path)) for path in paths if os.path.lexists(path))
    return [path for path in resolved if not any(other in resolved for other in path.parents)]


def _show(path: Path, scratch: Path, root: int, attributes: int) -> None:
    if path.is_symlink():  # /lib, mostly
        link = scratch / path.relative_to("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.readlink(path))
        return
    if not path.exists():
        return
    _place(scratch, path, is_directory=path.is_dir())
    mounts.attach_and_close(mounts.clone(str(path), attributes=attributes), root, str(path.relative_to("/")))


def _place(scratch: Path, path: Path, *, is_directory: bool) -> None:
    """What the mount covers."""
    place = scratch / path.relative_to("/")
    if is_directory:
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
