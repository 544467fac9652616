"""Forking a Python process straight into new namespaces: clone3 between the interpreter's own fork hooks.

One clone3 instead of fork + unshare + fork: the child is pid 1 of its pid namespace at once. The caller must be
single-threaded and must not itself be pid 1 (two children of a pid 1 would share OpenSSL's random state).
"""

from __future__ import annotations

import ctypes
import os
import signal
from typing import NamedTuple

from atoll.isolation.linux.sys import syscalls

_API = ctypes.pythonapi
for _hook in ("PyOS_BeforeFork", "PyOS_AfterFork_Parent", "PyOS_AfterFork_Child"):
    getattr(_API, _hook).restype = None
    getattr(_API, _hook).argtypes = []


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls",
            "set_tid", "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


class Forked(NamedTuple):
    """What the parent has of its child; both are -1/0 in the child itself."""

    pid: int
    pidfd: int


def fork_into(namespaces: int, owner: int | None = None) -> Forked:
    """Forks; the child begins in new `namespaces` (CLONE_NEW* flags). Returns pid 0 in the child. Raises OSError.

    `owner`: the host id that the new user namespace belongs to. What the kernel counts by user (inotify instances and
    watches, pending signals, bytes of message queues, locked memory, processes) is counted in the namespace and then
    for its owner: owned by root, all sandboxes would share root's own allowance. Needs root, and
    `keep_capabilities_on_id_change` before; the child begins with it as its effective ids.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(
        flags=namespaces | syscalls.CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=signal.SIGCHLD
    )
    _API.PyOS_BeforeFork()
    try:
        if owner is not None:
            os.setresgid(-1, owner, -1)
            os.setresuid(-1, owner, -1)
        pid = syscalls.call_held("clone3", ctypes.byref(arguments), ctypes.c_size_t(ctypes.sizeof(arguments)))
    except OSError:
        _act_as_root_again(owner)
        _API.PyOS_AfterFork_Parent()
        raise
    if pid == 0:
        _API.PyOS_AfterFork_Child()
        return Forked(0, -1)
    _act_as_root_again(owner)
    _API.PyOS_AfterFork_Parent()
    os.set_inheritable(pidfd.value, False)
    return Forked(pid, pidfd.value)


def _act_as_root_again(owner: int | None) -> None:
    if owner is not None:
        os.setresuid(-1, 0, -1)
        os.setresgid(-1, 0, -1)


def map_ids(pid: int, host_base: int, count: int) -> None:
    """Writes the id maps of a child in a new user namespace: inside 0.. ↔ outside host_base... Raises OSError."""
    line = f"0 {host_base} {count}\n".encode()
    for name in ("uid_map", "gid_map"):
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)


def rewrite_command_line(text: str) -> None:
    """Overwrites this process's command line as /proc shows it (a fork would show its parent's)."""
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
        ctypes.memmove(start, text.encode()[: end - start - 1], min(len(text.encode()), end - start - 1))
