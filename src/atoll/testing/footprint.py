"""What a running server occupies on the machine, counted from outside, through /proc and /sys/fs/cgroup alone.

Owns: finding every process that belongs to one server (its helpers and its sandboxes, also when they were orphaned),
and counting what those hold. Leak tests compare two counts; benchmarks add up memory. It asks the product nothing, so
it cannot share the product's errors.

How a process is recognised: its initial environment carries a marker that was set for the server alone (it is
inherited by the zygote and by what is forked from it), or an ancestor's does, or it lives in a pid namespace of such a
process. The reader must be root.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

MARKER = "ATOLL_FOOTPRINT_MARK"
"""Environment variable to set, to any unique value, for the server that is to be observed."""

_NAMESPACES = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Counts that must be the same before and after sandboxes came and went.

    `fds` are the helpers' descriptors by kind, without TCP sockets: those belong to clients and their keep-alive.
    `mounts` are the mount table lines of every mount namespace that a helper lives in.
    `cgroups` are the groups below the given bases (`cgroup_bases`), in every hierarchy.
    `opened` says of `fds` what they are: (kind, "process: target"), for people; it is left out of comparisons.
    """

    processes: int
    namespaces: int
    mounts: int
    cgroups: int
    fds: Counter[str] = field(default_factory=Counter)
    opened: Counter[tuple[str, str]] = field(default_factory=Counter, compare=False, repr=False)


def processes_of(mark: str) -> dict[int, int]:
    """pid → its pid namespace (inode), for every process of the server that was started with this mark."""
    parents: dict[int, int] = {}
    namespaces: dict[int, int] = {}
    own: set[int] = set()
    entry = f"{MARKER}={mark}".encode()
    for pid in _all_pids():
        try:
            namespaces[pid] = os.stat(f"/proc/{pid}/ns/pid").st_ino
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            if entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                own.add(pid)
        except (OSError, ValueError, IndexError):
            continue
    grew = True
    while grew:
        children = {pid for pid, parent in parents.items() if parent in own and pid not in own}
        own |= children
        grew = bool(children)
    host = os.stat("/proc/self/ns/pid").st_ino
    inside = {namespaces[pid] for pid in own if pid in namespaces} - {host}
    return {pid: ns for pid, ns in namespaces.items() if pid in own or ns in inside}


def helpers_of(mark: str) -> list[int]:
    """The processes of the server that live outside every sandbox: the server itself and its zygotes."""
    host = os.stat("/proc/self/ns/pid").st_ino
    return [pid for pid, namespace in processes_of(mark).items() if namespace == host]


def take(mark: str, bases: frozenset[Path] = frozenset()) -> Footprint:
    """One reading."""
    processes = processes_of(mark)
    helpers = helpers_of(mark)
    tables: dict[int, list[str]] = {}
    fds: Counter[str] = Counter()
    opened: Counter[tuple[str, str]] = Counter()
    namespaces: set[str] = set()
    for pid in processes:
        for kind in _NAMESPACES:
            try:
                namespaces.add(f"{kind}:{os.stat(f'/proc/{pid}/ns/{kind}').st_ino}")
            except OSError:
                continue
    for pid in helpers:
        try:
            table = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
            tables[os.stat(f"/proc/{pid}/ns/mnt").st_ino] = table
        except OSError:
            continue
        for kind, target in _fds(pid):
            fds[kind] += 1
            opened[kind, f"{_name(pid)}: {target}"] += 1
            if kind == "namespace":
                namespaces.add(target)
    mounts = [line for table in tables.values() for line in table]
    return Footprint(
        processes=len(processes),
        namespaces=len(namespaces),
        mounts=len(mounts),
        cgroups=sum(len(directories) for base in bases for _, directories, _ in os.walk(base)),
        fds=fds,
        opened=opened,
    )


def cgroup_bases(mark: str) -> frozenset[Path]:
    """The groups that the groups of live sandboxes lie in, found by looking at a live one: call it while one lives."""
    helpers = set(helpers_of(mark))
    helped = {path for pid in helpers for path in _cgroups_of(pid)}
    return frozenset(
        path.parent
        for pid in processes_of(mark)
        if pid not in helpers
        for path in _cgroups_of(pid)
        if path not in helped and path.parent != path
    )


def private_bytes(pid: int) -> int:
    """Memory that ends with this process: private clean and dirty pages. 0 for a process that is gone."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return 0
    return total


def new_mark() -> str:
    """A value for MARKER that no other server on this machine has."""
    return f"{socket.gethostname()}-{os.getpid()}-{os.urandom(8).hex()}"


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()[:60].replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"


def _fds(pid: int) -> list[tuple[str, str]]:
    """(kind, target) of each open descriptor; TCP sockets are left out."""
    found: list[tuple[str, str]] = []
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
        tcp = _tcp_inodes(pid)
    except OSError:
        return found
    for number in numbers:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue
        if target.startswith("socket:"):
            if target[8:-1] not in tcp:
                found.append(("socket", target))
        elif target.split(":", 1)[0] in _NAMESPACES:
            found.append(("namespace", target.replace("[", "").replace("]", "")))
        elif ":" in target and not target.startswith("/"):
            found.append((target.split(":", 1)[0] if "inode" not in target else target.split("[")[-1], target))
        else:
            found.append(("device" if target.startswith("/dev/") else "file", target))
    return found


def _tcp_inodes(pid: int) -> set[str]:
    inodes: set[str] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue
        inodes |= {line.split()[9] for line in lines}
    return inodes


def _cgroups_of(pid: int) -> set[Path]:
    """The directories of the cgroups of a process, one for each hierarchy that is mounted."""
    found: set[Path] = set()
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = controllers.removeprefix("name=").split(",") if controllers else ["", "unified"]
        for name in names:
            directory = _CGROUPS / name / path.lstrip("/")
            if path != "/" and directory.is_dir():
                found.add(directory)
                break
    return found
