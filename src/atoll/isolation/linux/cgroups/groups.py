"""Control groups, version 1 (a hierarchy per controller), version 2 (one for all) and mixtures of both.

    Cgroups.probe()      which controllers can be used here, found by looking, without changing anything
    Cgroups.group(name)  one sandbox's group: a directory in each hierarchy in use
    Group                create, limit, join, freeze, thaw, read, remove; plain synchronous file operations

With `apart` a sandbox's users have a group of their own within its group, with a little less than the sandbox may have:
what is left is the guest's, whatever they do. A thread of the guest lives in it (version 1: `tasks`; version 2: a
threaded group), and what that thread starts is born there. Version 1 keeps memory and processes apart. In version 2 all
threads of a process share one group's memory, so only processes are.

All sandboxes together weigh less than a single program of the host (`_ALL_SHARES`): that program, and the server, go
first on a busy machine, while sandboxes may use whatever is idle. Equal weights would not do: a recent kernel (6.18)
gives a group whose threads sleep and wake all the time, as those of any gVisor sandbox do, far more than its share.
Programs beside one waited up to 20 s for a processor; at a sixteenth of their weight, about as long as without it.

The groups lie in `<hierarchy>/<base>/<name>`; a base `<server>/<tier>` puts the tiers of a server into one group, whose
memory and processes can be bounded as a whole (`bound_all`). That one lies at the top and not below the server's own: a
sandbox outlives its server, and a service manager that ends the server's group must not end the sandboxes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from atoll.model.sandbox import Limits

_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "freezer")
_V2_ENABLED = ("memory", "pids", "cpu", "io")
_RATES = ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device")
_LOOP_MAJOR = 7
_DEVICES = Path("/sys/dev/block")
_PERIOD_US = 100_000
_SHARES, _WEIGHT, _MAX_WEIGHT = 1024, 100, 10_000
"""Of one processor, in versions 1 and 2: the kernel's own default. Who has twice as many gets twice as much of a busy
machine."""
_ALL_SHARES, _ALL_WEIGHT = _SHARES // 16, _WEIGHT // 16
"""Of all sandboxes of a server together."""
_REMOVE_WITHIN_S = 3.0
_USERS = "users"
_APART = ("memory", "pids")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group uses now; None where no controller counts it. CPU in seconds since the group was made."""

    cpu_s: float | None
    memory_bytes: int | None
    cache_bytes: int | None
    pids: int | None
    oom_kills: int | None


def share_of_users(limits: Limits) -> Limits:
    """What a sandbox's users may have together; the rest is the guest's. Pure."""
    memory = limits.memory_mib - max(8, min(32, limits.memory_mib // 8))
    return replace(limits, memory_mib=memory, pids=limits.pids - max(2, min(8, limits.pids // 16)))


def _without_page_cache(memory: int | None, cache: int | None, shared: int) -> int | None:
    """Pages of files go when somebody needs the room; those of tmpfs and shared memory, counted with them, do not."""
    return None if memory is None else max(0, memory - max(0, (cache or 0) - shared))


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _read(path: Path) -> str | None:
    try:
        return _contents(path)
    except OSError:
        return None


def _contents(path: Path) -> str:
    """Four system calls in place of a file object's ten: each sandbox has several such files, read again and again."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = b""
        while piece := os.read(descriptor, 1 << 16):
            found += piece
        return found.decode()
    finally:
        os.close(descriptor)


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text and text.strip().isdigit() else None


def _table(path: Path) -> Mapping[str, int]:
    text = _read(path) or ""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _hierarchies(mounts: str) -> Iterator[tuple[str, Path, frozenset[str]]]:
    """(file system type, mount point, v1 controllers) for every cgroup mount in the text of /proc/self/mounts."""
    for line in mounts.splitlines():
        _, point, kind, options, *_ = line.split(" ")
        if kind in ("cgroup", "cgroup2"):
            yield kind, Path(point.encode().decode("unicode_escape")), frozenset(options.split(","))


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The hierarchies that can be written, and the directory of ours in them."""

    base: str
    v1: Mapping[str, Path]
    """Controller → mount point of its version 1 hierarchy."""
    v2: Path | None
    """The unified hierarchy, if it is of any use: with controllers, or at least with its freezer."""
    v2_controllers: frozenset[str]
    apart: bool = False
    """Whether a sandbox's users have a group of their own within its group."""
    blkio: Path | None = None
    """The top of the version 1 hierarchy of disk rates; see `Group.limit_disk`."""

    @staticmethod
    def probe(base: str, mounts: str | None = None, *, apart: bool = False) -> Cgroups:
        """Looks at what is mounted and writable. Changes nothing; without any usable hierarchy all sets are empty."""
        text = mounts if mounts is not None else Path("/proc/self/mounts").read_text()
        v1: dict[str, Path] = {}
        v2: Path | None = None
        blkio: Path | None = None
        controllers: frozenset[str] = frozenset()
        for kind, point, options in _hierarchies(text):
            if not os.access(point, os.W_OK):
                continue
            if kind == "cgroup":
                v1.update({name: point for name in _CONTROLLERS if name in options})
                blkio = point if "blkio" in options and (point / _RATES[0]).exists() else blkio
            elif v2 is None:
                v2 = point
                controllers = frozenset((_read(point / "cgroup.controllers") or "").split()) & set(_V2_ENABLED)
        if v2 is not None and not controllers and "freezer" in v1:
            v2 = None  # a hybrid machine: everything of use is in version 1
        return Cgroups(base, v1, v2, controllers - v1.keys(), apart, blkio)

    @property
    def limited(self) -> frozenset[str]:
        """Of memory, pids and cpu those that can be limited here."""
        return (frozenset(self.v1) | self.v2_controllers) & {"memory", "pids", "cpu"}

    @property
    def can_freeze(self) -> bool:
        """Whether a group can be stopped as a whole."""
        return "freezer" in self.v1 or self.v2 is not None

    def group(self, name: str) -> Group:
        """The group of that name; made by `Group.create`."""
        parts = {controller: point / self.base / name for controller, point in self.v1.items()}
        unified = self.v2 / self.base / name if self.v2 else None
        users = {name: parts[name] / _USERS for name in _APART if self.apart and name in parts}
        users_v2 = unified / _USERS if self.apart and unified and "pids" in self.v2_controllers else None
        return Group(name, parts, unified, self.v2_controllers, users, users_v2, self.blkio)

    def prepare(self) -> None:
        """Makes the base directories and gives them their weight. Raises OSError with the path that cannot be made."""
        for point in set(self.v1.values()):
            (point / self.base).mkdir(parents=True, exist_ok=True)
        if (cpu := self.v1.get("cpu")) is not None:
            _write(cpu / self._all / "cpu.shares", str(_ALL_SHARES))
        if self.v2 is not None:
            missing = " ".join(f"+{name}" for name in sorted(self.v2_controllers))
            (self.v2 / self.base).mkdir(parents=True, exist_ok=True)
            if missing:
                for place in (self.v2, *dict.fromkeys((self.v2 / self._all, self.v2 / self.base))):
                    _write(place / "cgroup.subtree_control", missing)
            if "cpu" in self.v2_controllers:
                _write(self.v2 / self._all / "cpu.weight", str(_ALL_WEIGHT))

    def bound_all(self, at_once: Limits) -> list[str]:
        """Bounds memory and processes of all sandboxes of the server together, whichever tiers they are of.

        Which of the two cannot be bounded: there is no controller, or (memory) more is in use already.
        """
        alone = Group(self._all, {name: point / self._all for name, point in self.v1.items()}, None, frozenset())
        if self.v2 is not None:
            alone = replace(alone, v2=self.v2 / self._all, v2_controllers=self.v2_controllers)
        missing = [name for name in ("memory", "pids") if name not in self.limited]
        for name, bound in (("memory", alone.bound_memory), ("pids", alone.bound_pids)):
            try:
                bound(at_once)
            except OSError:
                missing.append(name)
        return sorted(set(missing))

    @property
    def _all(self) -> str:
        """Within each hierarchy the group of all tiers of this server."""
        return self.base.partition("/")[0]

    def lift_unused_disks(self) -> None:
        """Version 1: no rate waits for the next who is given a loop device that nobody has now."""
        if self.blkio is None:
            return
        for name in _RATES:
            for line in (_read(self.blkio / name) or "").splitlines():
                device = line.partition(" ")[0]
                if device.startswith(f"{_LOOP_MAJOR}:") and not (_DEVICES / device / "loop/backing_file").exists():
                    with contextlib.suppress(OSError):
                        _write(self.blkio / name, f"{device} 0")

    def names(self) -> set[str]:
        """Every group below our base, by whatever run of the server it was made."""
        points = [*self.v1.values(), *([self.v2] if self.v2 else [])]
        return {entry.name for point in points for entry in _directories(point / self.base)}

    def remove_base(self) -> None:
        """Takes the base directories away if nothing is in them any more."""
        for point in {*self.v1.values(), *([self.v2] if self.v2 else [])}:
            with contextlib.suppress(OSError):
                (point / self.base).rmdir()
                (point / self._all).rmdir()


def _open_all(paths: Sequence[Path]) -> list[int]:
    """For writing; all or none. Raises OSError."""
    descriptors: list[int] = []
    try:
        for path in paths:
            descriptors.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))  # noqa: PERF401
    except OSError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return descriptors


def _directories(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            yield from [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return


@dataclass(frozen=True, slots=True)
class Group:
    """One sandbox's group in every hierarchy in use. Methods may be called again; what is gone is passed over."""

    name: str
    v1: Mapping[str, Path]
    v2: Path | None
    v2_controllers: frozenset[str]
    users: Mapping[str, Path] = field(default_factory=dict)
    """Version 1: controller → the group of the users within this one."""
    users_v2: Path | None = None
    blkio: Path | None = None

    def paths(self) -> list[Path]:
        """Its directory in every hierarchy in use."""
        return [*dict.fromkeys(self.v1.values()), *([self.v2] if self.v2 else [])]

    def create(self) -> None:
        """Makes the directories. Raises OSError."""
        for path in [*self.paths(), *dict.fromkeys(self.users.values())]:
            path.mkdir(exist_ok=True)
        if self.v2 is not None and self.users_v2 is not None:
            try:
                self.users_v2.mkdir(exist_ok=True)
                _write(self.users_v2 / "cgroup.type", "threaded")
                _write(self.v2 / "cgroup.subtree_control", "+pids")
            except OSError:  # delegated to us without that right: the limits hold, only the reserve is missing
                with contextlib.suppress(OSError):
                    self.users_v2.rmdir()

    def join_descriptors(self) -> list[int]:
        """Open `cgroup.procs` files: a process that writes `0` into all of them is in the group.

        The kernel checks the rights of the opener, so that a child without any may join itself.
        """
        return _open_all([path / "cgroup.procs" for path in self.paths()])

    def users_descriptors(self) -> list[int]:
        """As `join_descriptors`, for a thread and the group of the users; what it starts then is born there."""
        paths = [path / "tasks" for path in dict.fromkeys(self.users.values())]
        if self.users_v2 is not None and self.users_v2.is_dir():
            paths.append(self.users_v2 / "cgroup.threads")
        return _open_all(paths)

    def limit(self, limits: Limits) -> None:
        """Writes the limits of every controller in use. Raises OSError (EBUSY: more memory in use than that)."""
        users = share_of_users(limits)
        if (path := self.users.get("memory")) is not None:
            _write(path / "memory.limit_in_bytes", str(users.memory_mib << 20))
        if (path := self.users.get("pids")) is not None:
            _write(path / "pids.max", str(users.pids))
        if self.users_v2 is not None and self.users_v2.is_dir():
            _write(self.users_v2 / "pids.max", str(users.pids))
        memory = limits.memory_mib << 20
        quota = limits.cpu_count * _PERIOD_US
        self.limit_memory(memory)
        self.bound_pids(limits)
        if (path := self.v1.get("cpu")) is not None:
            _write(path / "cpu.cfs_period_us", str(_PERIOD_US))
            _write(path / "cpu.cfs_quota_us", str(quota))
            _write(path / "cpu.shares", str(_SHARES * limits.cpu_count))
        if self.v2 is not None and "cpu" in self.v2_controllers:
            _write(self.v2 / "cpu.max", f"{quota} {_PERIOD_US}")
            _write(self.v2 / "cpu.weight", str(min(_WEIGHT * limits.cpu_count, _MAX_WEIGHT)))

    def bound_memory(self, limits: Limits) -> None:
        """The limit of memory alone. Raises OSError (EBUSY: more in use than that)."""
        self.limit_memory(limits.memory_mib << 20)

    def bound_pids(self, limits: Limits) -> None:
        """The limit of processes alone. Raises OSError."""
        if (path := self.v1.get("pids")) is not None:
            _write(path / "pids.max", str(limits.pids))
        if self.v2 is not None and "pids" in self.v2_controllers:
            _write(self.v2 / "pids.max", str(limits.pids))

    def limit_memory(self, memory: int) -> None:
        """The limit of memory alone, in bytes. Raises OSError (EBUSY: more in use than that)."""
        if (path := self.v1.get("memory")) is not None:
            self._limit_memory_v1(path, memory)
        if self.v2 is not None and "memory" in self.v2_controllers:
            _write(self.v2 / "memory.max", str(memory))
            if (self.v2 / "memory.swap.max").exists():
                _write(self.v2 / "memory.swap.max", "0")

    @staticmethod
    def _limit_memory_v1(path: Path, memory: int) -> None:
        """Memory and memory+swap alike, in the order that keeps the second at least as large as the first."""
        both = path / "memory.memsw.limit_in_bytes"
        plain = path / "memory.limit_in_bytes"
        current = _number(both)
        if current is None:
            _write(plain, str(memory))
        elif memory > current:
            _write(both, str(memory))
            _write(plain, str(memory))
        else:
            _write(plain, str(memory))
            _write(both, str(memory))

    def limit_disk(self, device: str, bytes_per_s: int | None) -> bool:
        """How much may be read from a block device (`major:minor`) of its own in a second, and written to it.

        Version 1 has a rate for each device and group, and what is written later is written by the kernel's own
        threads, which are in the top group. No sandbox is in another, and the device is the sandbox's own: so the rate
        stands there. False: there is no controller for it. Raises OSError.
        """
        if self.v2 is not None and "io" in self.v2_controllers:
            rate = "max" if bytes_per_s is None else str(bytes_per_s)
            _write(self.v2 / "io.max", f"{device} rbps={rate} wbps={rate}")
            return True
        if self.blkio is None:
            return False
        for name in _RATES:
            _write(self.blkio / name, f"{device} {bytes_per_s or 0}")
        return True

    def processes(self) -> set[int]:
        """Every process in the group, by pid as the host sees it."""
        found: set[int] = set()
        for path in [*self.paths(), *self.users.values()]:
            found.update(int(pid) for pid in (_read(path / "cgroup.procs") or "").split())
        return found

    def begin_freeze(self) -> None:
        """Asks for the freeze; `is_frozen` is true once every process stands. Raises OSError."""
        if (path := self.v1.get("freezer")) is not None:
            _write(path / "freezer.state", "FROZEN")
        elif self.v2 is not None:
            _write(self.v2 / "cgroup.freeze", "1")

    def is_frozen(self) -> bool:
        """Whether every process of the group stands still."""
        if (path := self.v1.get("freezer")) is not None:
            return (_read(path / "freezer.state") or "").strip() == "FROZEN"
        return self.v2 is not None and _table(self.v2 / "cgroup.events").get("frozen") == 1

    def thaw(self) -> None:
        """Lets every process go on. A group that is gone is fine."""
        try:
            if (path := self.v1.get("freezer")) is not None:
                _write(path / "freezer.state", "THAWED")
            elif self.v2 is not None:
                _write(self.v2 / "cgroup.freeze", "0")
        except FileNotFoundError:
            return

    def usage(self) -> Usage:
        """One reading of every controller in use."""
        cpu = memory = cache = pids = kills = None
        if (path := self.v1.get("cpuacct")) is not None and (used := _number(path / "cpuacct.usage")) is not None:
            cpu = used / 1e9
        elif self.v2 is not None and (micro := _table(self.v2 / "cpu.stat").get("usage_usec")) is not None:
            cpu = micro / 1e6
        if (path := self.v1.get("memory")) is not None:
            memory, table = _number(path / "memory.usage_in_bytes"), _table(path / "memory.stat")
            cache, shared = table.get("total_cache"), table.get("total_shmem", 0)
            kills = _table(path / "memory.oom_control").get("oom_kill")
            if kills is not None and (apart := self.users.get("memory")) is not None:  # version 1 does not add them up
                kills += _table(apart / "memory.oom_control").get("oom_kill", 0)
            memory = _without_page_cache(memory, cache, shared)
        elif self.v2 is not None and "memory" in self.v2_controllers:
            memory, table = _number(self.v2 / "memory.current"), _table(self.v2 / "memory.stat")
            cache, shared = table.get("file"), table.get("shmem", 0)
            kills = _table(self.v2 / "memory.events").get("oom_kill")
            memory = _without_page_cache(memory, cache, shared)
        if (path := self.v1.get("pids") or (self.v2 if "pids" in self.v2_controllers else None)) is not None:
            pids = _number(path / "pids.current")
        return Usage(cpu, memory, cache, pids, kills)

    def try_remove(self) -> bool:
        """Removes the directories; False while some still holds a dying process."""
        gone = True
        users = [*dict.fromkeys(self.users.values()), *([self.users_v2] if self.users_v2 else [])]
        for path in [*users, *self.paths()]:
            try:
                path.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                    raise
                gone = False
        return gone

    def remove(self, within_s: float = _REMOVE_WITHIN_S) -> bool:
        """`try_remove` until it succeeds; blocks up to `within_s`. For programs without an event loop."""
        deadline = time.monotonic() + within_s
        while not self.try_remove():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True
