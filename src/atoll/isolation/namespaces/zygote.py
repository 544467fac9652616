"""The zygote: a small process of its own, as host root, with the guest imported, that forks sandboxes and nothing else.

    pool of children: parked ──boot──► booted ──take──► limits, go ──► started ──► created (to the server)
           ▲ refilled when nobody waits

A booted child has entered a root of one of the templates that are asked for; one that is only parked fits any template.

One thread, one selector, no event loop library, no signals: a fork copies exactly this. It is not pid 1 and never
changes its own namespaces. When the server goes away it ends, and unfinished children with it; running sandboxes stay.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import secrets
import select
import selectors
import shutil
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from atoll.isolation import directory
from atoll.isolation.linux.cgroups.groups import Cgroups, Group
from atoll.isolation.linux.cgroups.meter import Meter
from atoll.isolation.linux.disk import image as disk_image
from atoll.isolation.linux.disk.image import Disk, Templates
from atoll.isolation.linux.sys import caps, rootless, syscalls
from atoll.isolation.linux.sys.fork import fork_into, map_ids, rewrite_command_line
from atoll.isolation.linux.sys.id_ranges import IdRanges, read_delegated
from atoll.isolation.linux.sys.machine import Machine
from atoll.isolation.namespaces import egress, messages, posture
from atoll.isolation.namespaces.child import GuestMain, SandboxInit
from atoll.isolation.namespaces.layout import RunLayout
from atoll.isolation.namespaces.root import PoolKey, PreparedRoot, build_root
from atoll.model.sandbox import Limits

_UNFINISHED_AT_ONCE = 2 + len(os.sched_getaffinity(0))
"""A few more than can run, for those that wait for the kernel. Twelve on two cores cost a fifth more processor time
each: they push each other's pages out of the caches."""
_REFILL_AFTER_S = 0.012
_REFILL_SOON_S = 0.003
"""A fork right behind a create competes with the newborn guest for the processor and makes its first answer late, so
the pool waits a little; a nearly empty one does not, because a create that finds it empty waits longest of all."""
_GIVE_UP_PARKING_AFTER = 3
_REMEMBERED = 8
_DISKS_OF_A_SIZE = 8
_DISK_SIZES = 3
# Modules that code may ask for by name at run time, when there is no file system to load them from.
_PRELOAD = (
    "encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.utf_16_le", "encodings.utf_16",
    "encodings.utf_32", "encodings.utf_8_sig", "encodings.unicode_escape", "encodings.raw_unicode_escape",
    "encodings.cp1252", "unicodedata", "stringprep", "traceback", "linecache", "tokenize",
)  # fmt: skip


class _State(Enum):
    PREPARING = "preparing"
    PARKED = "parked"
    BOOTING = "booting"
    STARTING = "starting"
    LIVE = "live"
    ENDING = "ending"


_COMING = frozenset({_State.PREPARING, _State.BOOTING})


class _Request:
    """One create of the server."""

    def __init__(self, body: dict[str, Any], listener: int, sealed_spec: int) -> None:
        self.number: int = body["id"]
        self.lower_dirs: list[str] = body["lower_dirs"]
        self.state_dir: str = body["state_dir"]
        self.limits = Limits.from_json(body["limits"])
        self.handed_on = [listener, sealed_spec]
        """For the child alone: the zygote reads from neither, for its memory is every later sandbox's too."""
        self.wanted: PoolKey | None = None
        self.tried_again = False
        self.stages: dict[str, float] = {"received": time.monotonic()}

    def close(self) -> None:
        while self.handed_on:
            os.close(self.handed_on.pop())


class _Child:
    """One forked process, from birth to its end."""

    def __init__(self, pid: int, pidfd: int, control: socket.socket, group: Group, id_base: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.control = control
        self.group = group
        self.id_base = id_base
        self.state = _State.PREPARING
        self.request: _Request | None = None
        self.root: PreparedRoot | None = None
        self.wanted: PoolKey | None = None
        """What its root is made from, once it is being booted."""
        self.started_ticks = syscalls.start_time(pid)
        self.boot_s = 0
        """CLOCK_BOOTTIME of the machine when that of its programs began."""
        self.processors: tuple[int, ...] = ()
        self.egress: list[int] = []
        self.ways_out: list[int] = []
        """Our own descriptors of its way out, for a server that cannot take them (rootless)."""

    def close_ways_out(self) -> None:
        while self.ways_out:
            os.close(self.ways_out.pop())


def _is_gone(child: _Child) -> bool:
    """Whether it has ended, or is about to: its end of the line closes before all of its namespace is dead."""
    poller = select.poll()
    poller.register(child.pidfd, select.POLLIN)
    poller.register(child.control, 0)  # a hang-up is always told
    return bool(poller.poll(0))


def _distance(child: _Child) -> int:
    """How far a free child is from being a sandbox."""
    if child.wanted is not None:
        return 0 if child.state is _State.PARKED else 1
    return 2 if child.state is _State.PARKED else 3


class Zygote:
    """The loop. `name` begins the names of its cgroups, `park` is how many children wait ready."""

    def __init__(
        self, name: str, server: socket.socket, layout: RunLayout, guest: Guest, park: int, *, rootless: bool = False
    ) -> None:
        self._name = name
        self._server = server
        self._layout = layout
        self._guest = guest
        self._park = park
        self._cgroups = Cgroups.probe(layout.cgroup_base, apart=True)
        self._programs = posture.seccomp_program(), posture.programs_seccomp_program()
        self._machine = Machine()
        self._last_cap = caps.last_cap()
        self._rootless = rootless
        self._may_score = not rootless and caps.is_held(caps.Cap.SYS_RESOURCE)  # root in a container may lack it
        self._boot_id = syscalls.boot_id()
        self._ids = IdRanges(read_delegated())
        self._no_egress = egress.why_not()
        self._selector = selectors.DefaultSelector()
        self._children: set[_Child] = set()
        self._young: set[_Child] = set()
        """Those that are no sandbox yet: few, however many sandboxes live."""
        self._parked: deque[_Child] = deque()
        self._waiting: deque[_Request] = deque()
        self._unremoved: list[Group] = []
        self._spent: list[PreparedRoot] = []
        """Roots that have been handed over: an empty directory of each is left."""
        self._failed: dict[_Child, tuple[_Request, str]] = {}
        self._parking_failures = 0
        self._asked: deque[PoolKey] = deque(maxlen=_REMEMBERED)
        """What was asked for last: the next create will most likely want it again."""
        self._disks: dict[int, list[Disk]] = {}
        """Disks that the server made ahead of need, by size."""
        self._disk_templates = Templates()
        layout.prepare()
        self._no_disk = disk_image.why_not(layout.disks)
        self._quiet_since = time.monotonic()

    def run(self) -> None:
        """Serves until the server's end of the line is closed."""
        syscalls.keep_capabilities_on_id_change()
        self._selector.register(self._server, selectors.EVENT_READ, self._from_server)
        shutil.rmtree(self._layout.prepared, ignore_errors=True)  # of a zygote that was killed
        self._tell({"op": "ready", "pid": os.getpid(), "no_egress": self._no_egress, "no_disk": self._no_disk})
        try:
            while True:
                step = self._next_step()
                events = self._selector.select(self._patience(step))
                for key, _ in events:
                    key.data()
                if not events and step is not None and time.monotonic() >= self._refill_at():
                    step()
                self._unremoved = [group for group in self._unremoved if not group.try_remove()]
        except _ServerGone:
            self._end()

    def _patience(self, step: Callable[[], None] | None) -> float | None:
        """How long to wait for an event: until it is time for the next step in quiet, if there is one."""
        until_step = max(0.0, self._refill_at() - time.monotonic()) if step is not None else None
        if self._unremoved:
            return min(0.02, until_step) if until_step is not None else 0.02
        return until_step

    def _refill_at(self) -> float:
        return self._quiet_since + (_REFILL_SOON_S if len(self._parked) <= 1 else _REFILL_AFTER_S)

    def _next_step(self) -> Callable[[], None] | None:
        """Work that nobody waits for: what brings the pool nearer to what it should be."""
        if self._waiting or self._unfinished():
            return None  # it would keep a caller waiting
        if self._spent:
            return lambda: self._spent.pop().discard()
        in_pool = [child for child in self._young if child.state is not _State.ENDING]
        if len(in_pool) < self._park and self._parking_failures < _GIVE_UP_PARKING_AFTER:
            return self._park_one
        plain = next((child for child in self._parked if child.wanted is None), None)
        booted = Counter(child.wanted for child in in_pool)
        shares = self._shares(booted)
        lacking = next((wanted for wanted, share in shares.items() if booted[wanted] < share), None)
        if lacking is None or (lacking.size_mib is not None and not self._disks.get(lacking.size_mib)):
            return None  # (a disk: the server is making one; here it would keep a caller waiting)
        if plain is not None:
            return functools.partial(self._boot, plain, lacking)
        needless = next((child for child in self._parked if booted[child.wanted] > shares.get(child.wanted, 0)), None)
        return functools.partial(self._drop, needless) if needless is not None else None

    def _shares(self, booted: Counter[PoolKey | None]) -> dict[PoolKey | None, int]:
        """How many of the pool should be booted for what: two thirds for what is asked for most, the rest for the next.

        What is there already counts for it: several that are asked for in turn must not drive each other out.
        """
        asked = Counter(self._asked)
        first, second = [*sorted(asked, key=lambda wanted: asked[wanted] + booted[wanted], reverse=True), None, None][
            :2
        ]
        if first is None or second is None:
            return {first: self._park} if first is not None else {}
        return {first: self._park - self._park // 3, second: self._park // 3}

    def _park_one(self) -> None:
        try:
            self._fork()
        except OSError as error:
            self._parking_failures = _GIVE_UP_PARKING_AFTER
            print(f"cannot park a sandbox: {error}", file=sys.stderr, flush=True)

    def _boot(self, child: _Child, wanted: PoolKey) -> None:
        """Sends a parked child into a root made for it."""
        try:
            child.group.limit(wanted.limits)
            disk = self._disk(wanted.size_mib) if wanted.size_mib is not None else None
            root = PreparedRoot(child.pid, child.id_base, wanted, self._layout.prepared / child.group.name, disk)
        except (OSError, ValueError):
            self._forget(wanted)
            return
        self._parked.remove(child)
        child.root, child.wanted, child.state = root, wanted, _State.BOOTING
        mount = root.hand_over()
        try:
            messages.send(child.control, {"op": "boot", **self._size(child, wanted.limits)}, (mount,))
        except OSError as error:
            self._discard(child, str(error))
        finally:
            os.close(mount)

    def _size(self, child: _Child, limits: Limits) -> dict[str, Any]:
        """What the child shows of the machine."""
        if len(child.processors) != limits.cpu_count:
            self._machine.give_back(child.processors)
            child.processors = self._machine.take(limits.cpu_count)
        return {"limits": limits.as_json(), "processors": child.processors, "boot_s": child.boot_s}

    def _forget(self, wanted: PoolKey) -> None:
        """It cannot be made ahead. Whoever asks for it next is told why."""
        self._asked = deque((one for one in self._asked if one != wanted), _REMEMBERED)

    def _drop(self, child: _Child) -> None:
        """Ends a child of the pool that is of no use any more."""
        self._parked.remove(child)
        child.state = _State.ENDING
        self._hang_up(child)
        syscalls.pidfd_kill(child.pidfd)

    # -- the server ----------------------------------------------------------------------------------------------------

    def _tell(self, body: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        try:
            messages.send(self._server, body, descriptors)
        except OSError as error:
            raise _ServerGone from error

    def _from_server(self) -> None:
        try:
            body, descriptors = messages.receive(self._server)
        except OSError as error:
            raise _ServerGone from error
        if body is None:
            raise _ServerGone
        self._quiet_since = time.monotonic()
        if body["op"] == "create":
            request = _Request(body, *descriptors)
            with contextlib.suppress(OSError):  # `_start` says what is wrong
                request.wanted = self._wanted(request)
                self._asked.append(request.wanted)
            self._waiting.append(request)
            self._serve_waiting()
        elif body["op"] == "cancel":
            self._cancel(body["id"])
        elif body["op"] == "disk":
            self._store_disk(Disk(Path(body["image"]), descriptors[0], body["size_mib"]))

    def _cancel(self, number: int) -> None:
        for request in [request for request in self._waiting if request.number == number]:
            self._waiting.remove(request)
            self._refuse(request, "cancelled")
        for child in [child for child in self._young if child.request and child.request.number == number]:
            self._discard(child, "cancelled")

    def _refuse(self, request: _Request, error: str) -> None:
        request.close()
        self._tell({"op": "failed", "id": request.number, "error": error})

    # -- from request to sandbox ---------------------------------------------------------------------------------------

    def _serve_waiting(self) -> None:
        while self._waiting:
            request = self._waiting[0]
            child = self._fitting(request)
            if child is None:
                if self._unfinished() >= _UNFINISHED_AT_ONCE:
                    return
                try:
                    child = self._fork()
                except OSError as error:
                    self._refuse(self._waiting.popleft(), f"fork: {error}")
                    continue
            child.request = self._waiting.popleft()
            if child.state is _State.PARKED:
                self._start(child, child.request)

    def _fitting(self, request: _Request) -> _Child | None:
        """A child of the pool, or on its way to it, that can become this sandbox: the further it is, the better."""
        free = [*self._parked, *(c for c in self._young if c.state in _COMING and c.request is None)]
        usable = [child for child in free if child.wanted is None or child.wanted == request.wanted]
        for best in sorted(usable, key=_distance):
            if _is_gone(best):
                continue  # killed from outside; `_ended` comes to it in its turn
            if best.state is _State.PARKED:
                self._parked.remove(best)
            return best
        return None

    def _wanted(self, request: _Request) -> PoolKey:
        size_mib = None if self._no_disk else request.limits.disk_mib
        return PoolKey.of(request.lower_dirs, size_mib, request.limits)

    def _unfinished(self) -> int:
        return sum(child.request is not None for child in self._young)

    def _fork(self) -> _Child:
        """A new child with its group and ids, on its way to being parked. Raises OSError; nothing is left then."""
        group = self._cgroups.group(f"{self._name}-{secrets.token_hex(6)}")
        undo: list[Callable[[], object]] = [lambda: self._unremoved.append(group)]
        try:
            group.create()
            joins = group.join_descriptors()
            undo += [lambda fd=fd: os.close(fd) for fd in joins]  # type: ignore[misc]
            users = group.users_descriptors()
            undo += [lambda fd=fd: os.close(fd) for fd in users]  # type: ignore[misc]
            meter = Meter.of(group)
            undo.append(meter.close)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo += [ours.close, theirs.close]
            id_base = 0 if self._rootless else self._ids.take()
            undo.append(lambda: self._ids.give_back(id_base))
            pid, pidfd = fork_into(posture.NAMESPACES, owner=id_base or None)
            if pid == 0:
                SandboxInit(
                    theirs,
                    joins,
                    users,
                    self._guest.main,
                    self._programs,
                    self._last_cap,
                    egress=not self._no_egress,
                    meter=meter,
                    machine=self._machine,
                    rootless=self._rootless,
                    ahead=self._guest.prepare,
                ).run()
        except OSError:
            for step in reversed(undo):
                step()
            raise
        theirs.close()
        meter.close()
        for descriptor in (*joins, *users):
            os.close(descriptor)
        child = _Child(pid, pidfd, ours, group, id_base)
        self._children.add(child)
        self._young.add(child)
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._from_child(child))
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._ended(child))
        try:
            if self._rootless:
                rootless.map_within(pid)
            else:
                map_ids(pid, child.id_base, posture.HOST_IDS_PER_SANDBOX)
            if self._may_score:
                _score(pid)
            messages.send(ours, {"op": "mapped"})
        except OSError as error:
            self._discard(child, str(error))
            raise
        return child

    def _start(self, child: _Child, request: _Request) -> None:
        """Gives a child its identity. A request that cannot be met costs no child that could meet others."""
        descriptors: list[int] = []
        request.stages["taken"] = time.monotonic()
        try:
            state_dir = Path(request.state_dir)
            if child.root is not None:
                child.root.move(state_dir)
                self._spent.append(child.root)
                child.root = None
            else:
                child.group.limit(request.limits)
                descriptors.append(self._root(child, request, state_dir))
            log = os.open(state_dir / directory.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            descriptors.append(log)
            body = {"op": "go", **self._size(child, request.limits)}
            # Known to the next server before the sandbox can run, whatever happens to this one.
            directory.begin(state_dir, "namespaces", self._record(child, request))
            messages.send(child.control, body, [*descriptors, *request.handed_on])
            child.state = _State.STARTING
            request.stages["sent"] = time.monotonic()
        except (OSError, ValueError) as error:
            child.request, child.state = None, _State.PARKED
            self._parked.append(child)
            if child.wanted is not None:
                self._drop(child)
            self._refuse(request, str(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            request.close()

    def _root(self, child: _Child, request: _Request, state_dir: Path) -> int:
        """A root made on the spot."""
        disk = None
        if not self._no_disk:
            disk = self._disk(request.limits.disk_mib)
            disk.move(state_dir)
        return build_root(child.pid, child.id_base, request.lower_dirs, state_dir, disk)

    def _store_disk(self, disk: Disk) -> None:
        """Keeps it, unless there are enough: a burst must not leave its peak behind, nor a size that was used once."""
        stock = self._disks.setdefault(disk.size_mib, [])
        in_roots = sum(child.root is not None for child in self._parked)
        if len(stock) + in_roots >= _DISKS_OF_A_SIZE:
            disk.discard()
            return
        stock.append(disk)
        for size in [size for size in self._disks if size != disk.size_mib][: -_DISK_SIZES + 1]:
            for old in self._disks.pop(size):
                old.discard()

    def _disk(self, size_mib: int) -> Disk:
        """One from the stock, else a new one. Raises OSError."""
        if stock := self._disks.get(size_mib):
            return stock.pop()
        image = self._layout.disks / f"z{secrets.token_hex(6)}.img"
        return disk_image.make_disk(image, size_mib, self._disk_templates)

    def _record(self, child: _Child, request: _Request) -> dict[str, Any]:
        return {
            "pid": child.pid,
            "started_ticks": child.started_ticks,
            "boot_id": self._boot_id,
            "group": child.group.name,
            "id_base": child.id_base,
            "processors": child.processors,
            "egress": child.egress,
            "disk_mib": None if self._no_disk else request.limits.disk_mib,
        }

    # -- the children --------------------------------------------------------------------------------------------------

    def _from_child(self, child: _Child) -> None:
        try:
            body, descriptors = messages.receive(child.control)
        except OSError:
            body, descriptors = None, []
        child.ways_out += descriptors
        if body is None:
            self._discard(child, "the first process ended during set-up; see guest.log in the state directory")
        elif body["op"] == "failed":
            self._discard(child, body["error"])
        elif body["op"] in ("parked", "booted"):
            child.state = _State.PARKED
            child.egress = body.get("egress", child.egress)
            if body["op"] == "parked":
                child.boot_s = _begin_clock(child)
            self._parking_failures = 0
            if child.request is not None:
                self._start(child, child.request)
            else:
                self._parked.append(child)
            self._serve_waiting()
        elif body["op"] == "started" and child.request is not None:
            self._created(child, child.request, body["stages"])

    def _created(self, child: _Child, request: _Request, stages: dict[str, float]) -> None:
        child.state, child.request = _State.LIVE, None
        self._young.discard(child)
        self._hang_up(child)
        message = {
            "op": "created",
            "id": request.number,
            "record": self._record(child, request),
            "stages": {**request.stages, **stages, "reported": time.monotonic()},
        }
        self._quiet_since = time.monotonic()
        try:
            self._tell(message, (child.pidfd, *child.ways_out))
        except _ServerGone:
            syscalls.pidfd_kill(child.pidfd)  # nobody knows of it
            raise
        child.close_ways_out()
        self._serve_waiting()

    def _hang_up(self, child: _Child) -> None:
        if child.control.fileno() >= 0:
            self._selector.unregister(child.control)
            child.control.close()

    def _discard(self, child: _Child, reason: str) -> None:
        """Ends a child that is no sandbox yet; `_ended` frees what it had."""
        if child.state is _State.ENDING:
            return
        if child.request is not None and child.state in _COMING and not child.request.tried_again:
            # Whoever waits for it has not been touched by its end: another child, once.
            child.request.tried_again = True
            self._waiting.appendleft(child.request)
            child.request = None
        if child.request is None:
            if child.wanted is not None:
                self._forget(child.wanted)  # its template's fault, most likely
            else:
                self._parking_failures += 1
            print(f"a sandbox made ahead failed: {reason}", file=sys.stderr, flush=True)
        with contextlib.suppress(ValueError):
            self._parked.remove(child)
        child.state = _State.ENDING
        self._hang_up(child)
        syscalls.pidfd_kill(child.pidfd)
        if child.request is not None:
            self._failed[child] = (child.request, reason)
            child.request = None

    def _ended(self, child: _Child) -> None:
        """Reaps. Whatever is in the sandbox's pid namespace is dead when its first process can be waited for."""
        _, status = os.waitpid(child.pid, 0)
        if child.state is not _State.LIVE:
            self._discard(child, "the first process ended during set-up; see guest.log in the state directory")
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        child.close_ways_out()
        self._children.discard(child)
        self._young.discard(child)
        self._ids.give_back(child.id_base)
        self._machine.give_back(child.processors)
        if child.root is not None:
            child.root.discard()
        if child.state is _State.LIVE:
            self._tell({"op": "exited", "pid": child.pid, "status": status})
            return
        if not child.group.try_remove():
            self._unremoved.append(child.group)
        if (failure := self._failed.pop(child, None)) is not None:
            self._refuse(*failure)  # only now: nothing of it is left
        self._serve_waiting()
        if child.root is not None and child.wanted is not None and child.wanted.size_mib is not None:
            self._tell({"op": "disk_lost", "size_mib": child.wanted.size_mib})

    def _end(self) -> None:
        """The server is gone: unfinished children end, sandboxes stay."""
        unfinished = list(self._young)
        for child in unfinished:
            syscalls.pidfd_kill(child.pidfd)
        for child in unfinished:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            child.group.remove(1.0)
            if child.root is not None:
                child.root.discard()
        for group in self._unremoved:
            group.remove(1.0)
        for root in self._spent:
            root.discard()
        for disk in [disk for stock in self._disks.values() for disk in stock]:
            disk.discard()


def _begin_clock(child: _Child) -> int:
    """Time since boot, for its programs, is that since it was made. Returns when that was; 0 if it is the machine's.

    Set from here: the first process has become root of a user namespace that does not own its own files in /proc.
    """
    began = child.started_ticks // os.sysconf("SC_CLK_TCK")
    try:
        starter = next(name for name in os.listdir(f"/proc/{child.pid}/task") if name != str(child.pid))
        offsets = os.open(f"/proc/{starter}/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
    except (OSError, StopIteration):
        return 0
    try:
        os.write(offsets, f"boottime -{began} 0".encode())
    except OSError:  # it is in no namespace of its own
        return 0
    finally:
        os.close(offsets)
    return began


def _score(pid: int) -> None:
    """The guest's place when memory ends, and the bound for all that it will ever start. Needs CAP_SYS_RESOURCE."""
    adjustment = Path(f"/proc/{pid}/oom_score_adj")
    with contextlib.suppress(OSError):
        adjustment.write_text(str(posture.OOM_SCORE_ADJ))
        try:
            Path(f"/proc/{pid}/oom_adj").write_text(str(posture.OOM_ADJ))
        except OSError:  # a kernel without the older file: no bound then
            adjustment.write_text(str(posture.OOM_SCORE_WITHOUT_BOUND))


class _ServerGone(Exception):
    """The line to the server is closed."""


class Guest(NamedTuple):
    """What becomes of a child. `prepare` runs first, in a child of the pool, before anybody knows whose it will be."""

    main: GuestMain
    prepare: Callable[[], None] | None


def load_guest(entry: str) -> Guest:
    """The guest by its import path `module:function`, with everything it may want later, run in if its module has a
    `warm_up`; `prepare` is its module's, if it has one. Raises ImportError."""
    module, _, name = entry.partition(":")
    for preload in _PRELOAD:
        importlib.import_module(preload)
    loaded = importlib.import_module(module)
    guest = Guest(getattr(loaded, name), getattr(loaded, "prepare", None))
    if (warm_up := getattr(loaded, "warm_up", None)) is not None:
        warm_up()
    return guest


def main(descriptor: int, options: str) -> NoReturn:
    """Called by `zygote_client` in a fresh interpreter, with the line to the server and JSON options."""
    chosen = json.loads(options)
    server = socket.socket(fileno=descriptor)
    rewrite_command_line("atoll-zygote")
    syscalls.prctl(syscalls.PR_SET_NAME, b"atoll-zygote")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    status = 0
    try:
        guest = load_guest(chosen["guest_entry"])
        zygote = Zygote(
            chosen["name"],
            server,
            RunLayout(Path(chosen["run_dir"])),
            guest,
            chosen["park"],
            rootless=chosen["rootless"],
        )
        gc.collect()
        gc.freeze()  # the collector must not touch, and so copy, the pages that all children share
        gc.disable()
        zygote.run()
    except (ImportError, AttributeError, OSError, ValueError) as error:
        status = 1
        with contextlib.suppress(OSError):
            messages.send(server, {"op": "broken", "error": f"{type(error).__name__}: {error}"})
        print(f"zygote: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(status)
