"""The zygote: a small process of its own, as host root, with the guest imported, that forks sandboxes and nothing else.

    pool of children: parked ──boot──► booted ──take──► limits, go ──► started ──► created (to the server)
           ▲ refilled when nobody waits

What the pool should be is decided in `pool`, what a child may say in `children`; which creates wait is in `requests`.

One thread, one selector, no event loop library, no signals: a fork copies exactly this. Nothing here waits for a disk
or for a program: while one create waits for its disk, which the server makes, the others go on. It is not pid 1 and
never changes its own namespaces. When the server goes away it ends, and unfinished children with it; running sandboxes
stay.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import selectors
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from atoll.isolation import directory
from atoll.isolation.linux.cgroups.groups import Cgroups, Group
from atoll.isolation.linux.disk import mounts, volume
from atoll.isolation.linux.disk.image import Disk
from atoll.isolation.linux.disk.layers import Layers
from atoll.isolation.linux.sys import caps, shared_heap, syscalls
from atoll.isolation.linux.sys.fork import rewrite_command_line
from atoll.isolation.linux.sys.machine import Machine
from atoll.isolation.namespaces import egress, messages, pool, posture
from atoll.isolation.namespaces.children import COMING, Child, ChildState, MalformedReport, Report
from atoll.isolation.namespaces.disk_shelf import DISKS_OF_A_SIZE, DiskShelf
from atoll.isolation.namespaces.forking import ChildFactory
from atoll.isolation.namespaces.guest_entry import Guest, load_guest
from atoll.isolation.namespaces.layout import RunLayout
from atoll.isolation.namespaces.requests import Request, RequestQueue
from atoll.isolation.namespaces.root import PoolKey, PreparedRoot, build_root
from atoll.model.sandbox import Limits

_UNFINISHED_AT_ONCE = 2 + len(os.sched_getaffinity(0))
"""A few more than can run, for those that wait for the kernel. Twelve on two cores cost a fifth more processor time
each: they push each other's pages out of the caches."""
_REFILL_AFTER_S = 0.012
_REFILL_SOON_S = 0.003
"""A fork right behind a create competes with the new guest for the processor and makes its first answer late, so
the pool waits a little; a nearly empty one does not, because a create that finds it empty waits longest of all."""
_GIVE_UP_PARKING_AFTER = 3
_ORDER_AGAIN_AFTER_S = 1.0
"""Once the server could not make a disk ahead of need."""
_ENDED_EARLY = "the first process ended during set-up; see guest.log in the state directory"


class Zygote:
    """The loop. `name` begins the names of its cgroups, `park` is how many children wait ready, `no_disk` says why
    sandboxes have no disks of their own; "" where they have."""

    def __init__(
        self,
        name: str,
        server: socket.socket,
        layout: RunLayout,
        guest: Guest,
        park: int,
        *,
        no_disk: str,
        rootless: bool = False,
    ) -> None:
        self._server = server
        self._layout = layout
        self._park = park
        self._rootless = rootless
        self._machine = Machine()
        self._boot_id = syscalls.boot_id()
        self._no_egress = egress.why_not()
        self._factory = ChildFactory(
            name,
            Cgroups.probe(layout.cgroup_base, apart=True),
            guest,
            self._machine,
            egress=not self._no_egress,
            is_rootless=rootless,
        )
        self._selector = selectors.DefaultSelector()
        self._young: dict[Child, None] = {}
        """Those that are no sandbox yet, in the order of their forks: few, however many sandboxes live."""
        self._waiting = RequestQueue()
        self._demand: pool.Demand[PoolKey] = pool.Demand()
        self._disks = DiskShelf()
        self._layers = Layers()
        self._ordered: Counter[int] = Counter()
        """Disks that the server is making, by size."""
        self._order_again_at = 0.0
        self._unremoved: list[Group] = []
        self._spent: list[PreparedRoot] = []
        """Roots that have been handed over: an empty directory of each is left."""
        self._failed: dict[Child, tuple[Request, str]] = {}
        self._parking_failures = 0
        layout.prepare()
        self._no_disk = no_disk
        self._quiet_since = time.monotonic()

    def run(self) -> None:
        """Serves until the server's end of the line is closed."""
        syscalls.keep_capabilities_on_id_change()
        if not self._rootless:  # there its capabilities are over its own user namespace only
            caps.limit_to(posture.ZYGOTE_CAPABILITIES)
        self._selector.register(self._server, selectors.EVENT_READ, self._from_server)
        try:
            # First, for it fails where the server is gone: then what is prepared is another zygote's already.
            self._send({"op": "ready", "pid": os.getpid(), "no_egress": self._no_egress})
            shutil.rmtree(self._layout.prepared, ignore_errors=True)  # of a zygote that was killed
            while True:
                step = self._next_step()
                events = self._selector.select(self._patience(step))
                for key, _ in events:
                    key.data()
                if not events and step is not None and time.monotonic() >= self._refill_at():
                    step()
                self._unremoved = [group for group in self._unremoved if not group.try_remove()]
                self._layers.let_go_unused()
        except _ServerGone:
            self._end()

    # -- the pool ------------------------------------------------------------------------------------------------------

    def _patience(self, step: Callable[[], None] | None) -> float | None:
        """How long to wait for an event: until it is time for something that is done in quiet, if there is anything."""
        due = [max(0.0, self._refill_at() - time.monotonic())] if step is not None else []
        if self._unremoved:
            due.append(0.02)
        if (unused := self._layers.next_unused_s()) is not None:
            due.append(unused)
        return min(due, default=None)

    def _refill_at(self) -> float:
        ready = sum(child.is_ready for child in self._young)
        return self._quiet_since + (_REFILL_SOON_S if ready <= 1 else _REFILL_AFTER_S)

    def _next_step(self) -> Callable[[], None] | None:
        """Work that nobody waits for."""
        if self._waiting or self._unfinished():
            return None  # it would keep a caller waiting
        if self._spent:
            return lambda: self._spent.pop().discard()
        if lacking := self._lacking_disks():
            return lambda: self._order_disks(lacking)
        step = pool.next_step(
            self._park,
            self._demand,
            [child for child in self._young if child.is_free],
            may_park=self._parking_failures < _GIVE_UP_PARKING_AFTER,
            may_boot=lambda key: key.size_mib is None or self._disks.count(key.size_mib) > 0,
        )
        match step:
            case pool.Park():
                return self._park_one
            case pool.Boot(child, key):
                return lambda: self._boot(child, key)
            case pool.Drop(child):
                return lambda: self._drop(child)
            case None:
                return None

    def _lacking_disks(self) -> Counter[int]:
        """Disks that the next creates will need, by size: a few of each that is asked for most."""
        if self._no_disk or time.monotonic() < self._order_again_at:
            return Counter()
        booted = Counter(child.key for child in self._young if child.is_free)
        sizes = {key.size_mib for key in self._demand.shares(self._park, booted) if key.size_mib is not None}
        sizes = sizes or {Limits().disk_mib}  # before anybody has asked
        have = {size: self._disks.count(size) + self._disks_in_pool(size) + self._ordered[size] for size in sizes}
        return +Counter({size: DISKS_OF_A_SIZE - count for size, count in have.items()})

    def _order_disks(self, lacking: Counter[int]) -> None:
        for size_mib in lacking.elements():
            self._ordered[size_mib] += 1
            self._send({"op": "disk_needed", "size_mib": size_mib})

    def _park_one(self) -> None:
        try:
            self._fork()
        except OSError as error:
            self._parking_failures = _GIVE_UP_PARKING_AFTER
            print(f"cannot park a sandbox: {error}", file=sys.stderr, flush=True)

    def _boot(self, child: Child, key: PoolKey) -> None:
        """Sends a parked child into a root made for it."""
        try:
            child.group.limit(key.limits)
            disk = self._disks.take(key.size_mib) if key.size_mib is not None else None
            root = PreparedRoot(
                child.pid, child.id_base, key, self._layout.prepared / child.group.name, disk, self._layers
            )
        except (OSError, ValueError):
            self._demand.forget(key)
            return
        child.root, child.key = root, key
        child.move(ChildState.BOOTING)
        mount = root.hand_over()
        try:
            messages.send(child.control, {"op": "boot", **self._size(child, key.limits)}, (mount,))
        except OSError as error:
            self._discard(child, str(error))
        finally:
            os.close(mount)

    def _size(self, child: Child, limits: Limits) -> dict[str, Any]:
        """What the child shows of the machine."""
        if len(child.processors) != limits.cpu_count:
            self._machine.give_back(child.processors)
            child.processors = self._machine.take(limits.cpu_count)
        return {"limits": limits.as_json(), "processors": child.processors, "boot_s": child.boot_s}

    def _drop(self, child: Child) -> None:
        """Ends a child of the pool that is of no use any more."""
        child.move(ChildState.ENDING)
        self._hang_up(child)
        syscalls.pidfd_kill(child.pidfd)

    # -- the server ----------------------------------------------------------------------------------------------------

    def _send(self, body: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        try:
            messages.send(self._server, body, descriptors)
        except OSError as error:
            raise _ServerGone from error

    def _from_server(self) -> None:
        try:
            body, descriptors = messages.receive(self._server)
        except (OSError, ValueError) as error:
            raise _ServerGone from error
        if body is None:
            raise _ServerGone
        self._quiet_since = time.monotonic()
        match body["op"]:
            case "create":
                self._take(Request(body, *descriptors))
            case "cancel":
                self._cancel(body["id"])
            case "disk":
                self._store_disk(Disk(Path(body["image"]), descriptors[0], body["size_mib"]))
            case "no_disk":
                self._do_without_disk(body["size_mib"], body["error"])
        self._serve_waiting()

    def _take(self, request: Request) -> None:
        if not request.resumes and not request.has_mounts:
            with contextlib.suppress(OSError):  # `_start` says what is wrong
                request.key = self._key_of(request)
                if not request.one_off:
                    self._demand.note(request.key)
        self._waiting.add(request)

    def _cancel(self, number: int) -> None:
        for request in [request for request in self._waiting if request.number == number]:
            self._waiting.remove(request)
            self._refuse(request, "cancelled")
        for child in [child for child in self._young if child.request and child.request.number == number]:
            self._discard(child, "cancelled")

    def _refuse(self, request: Request, error: str) -> None:
        self._let_go(request)
        self._send({"op": "failed", "id": request.number, "error": error})

    def _let_go(self, request: Request) -> None:
        """Of what a request held that has come to its end, or needs it no more."""
        request.close()
        disk, request.disk = request.disk, None
        if disk is not None and disk.is_kept:
            disk.discard()
        elif disk is not None:
            self._disks.put(disk, self._disks_in_pool(disk.size_mib))

    # -- from request to sandbox ---------------------------------------------------------------------------------------

    def _serve_waiting(self) -> None:
        for request in self._waiting:
            ready_made = self._fitting(request, booted_only=True)
            if ready_made is None and not self._has_disk(request):
                continue
            child = ready_made or self._fitting(request)
            if child is None:
                if self._unfinished() >= _UNFINISHED_AT_ONCE:
                    return
                try:
                    child = self._fork()
                except OSError as error:
                    self._waiting.remove(request)
                    self._refuse(request, f"fork: {error}")
                    continue
            self._waiting.remove(request)
            child.request = request
            if child.is_ready:
                self._start(child, request)

    def _has_disk(self, request: Request) -> bool:
        """Whether the request has what a root needs; if not, the server is asked for it."""
        if self._no_disk or request.disk is not None:
            return True
        size_mib = request.limits.disk_mib
        request.disk = self._disks.take(size_mib)
        if request.disk is None and not request.awaits_disk:
            request.awaits_disk = True
            self._order_disks(Counter({size_mib: 1}))
        return request.disk is not None

    def _fitting(self, request: Request, *, booted_only: bool = False) -> Child | None:
        """A child of the pool, or on its way to it, that can become this sandbox: the further it is, the better."""
        free = [child for child in self._young if child.is_free]
        found = pool.candidates(request.key or object(), free, booted_only=booted_only)
        # Those that were killed from outside are left to `_ended`, which comes to them in its turn.
        return next((child for child in found if not child.is_gone()), None)

    def _key_of(self, request: Request) -> PoolKey:
        size_mib = None if self._no_disk else request.limits.disk_mib
        return PoolKey.of(request.lower_dirs, size_mib, request.limits)

    def _unfinished(self) -> int:
        return sum(child.request is not None for child in self._young)

    def _fork(self) -> Child:
        """A new child, on its way to being parked. Raises OSError; nothing is left then."""
        child = self._factory.fork(self._unremoved.append)
        self._young[child] = None
        self._selector.register(child.control, selectors.EVENT_READ, lambda: self._from_child(child))
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._ended(child))
        try:
            self._factory.give_ids(child)
        except OSError as error:
            self._discard(child, str(error))
            raise
        return child

    def _start(self, child: Child, request: Request) -> None:
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
                descriptors += _mounts(child, request)
            log = os.open(state_dir / directory.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            descriptors.append(log)
            places = [path for mounts in (request.volumes, request.devices, request.shown) for _, path in mounts]
            body = {"op": "go", "mounts": places, **self._size(child, request.limits)}
            # Known to the next server before the sandbox can run, whatever happens to this one.
            directory.begin(state_dir, "namespaces", self._record(child, request))
            messages.send(child.control, body, [*descriptors, *request.handed_on])
            child.move(ChildState.STARTING)
            request.stages["sent"] = time.monotonic()
        except (OSError, ValueError) as error:
            child.request = None
            if child.key is not None:
                self._drop(child)
            self._refuse(request, str(error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            self._let_go(request)

    def _root(self, child: Child, request: Request, state_dir: Path) -> int:
        """A root made on the spot."""
        disk, request.disk = request.disk, None
        if disk is not None:
            disk.move(state_dir)
        return build_root(child.pid, child.id_base, request.lower_dirs, state_dir, disk, self._layers)

    def _store_disk(self, disk: Disk) -> None:
        self._ordered[disk.size_mib] -= 1
        if (request := self._waiting.first_awaiting(disk.size_mib)) is not None:
            request.disk = disk
        else:
            self._disks.put(disk, self._disks_in_pool(disk.size_mib))

    def _do_without_disk(self, size_mib: int, error: str) -> None:
        self._ordered[size_mib] -= 1
        self._order_again_at = time.monotonic() + _ORDER_AGAIN_AFTER_S
        if (request := self._waiting.first_awaiting(size_mib)) is not None:
            self._waiting.remove(request)
            self._refuse(request, error)

    def _disks_in_pool(self, size_mib: int) -> int:
        return sum(child.root is not None and child.root.size_mib == size_mib for child in self._young)

    def _record(self, child: Child, request: Request) -> dict[str, Any]:
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

    def _from_child(self, child: Child) -> None:
        try:
            report = child.receive()
        except MalformedReport as error:
            self._discard(child, f"the first process sent a malformed report: {error}")
            return
        except OSError:
            report = None
        if report is None:
            self._discard(child, _ENDED_EARLY)
        elif report.op == "failed":
            self._discard(child, report.error)
        elif report.op == "started":
            if child.request is not None:
                self._created(child, child.request, report)
        else:
            self._parked(child, report)

    def _parked(self, child: Child, report: Report) -> None:
        child.move(ChildState.PARKED)
        if report.op == "parked":
            child.egress = report.egress
            child.begin_clock()
        self._parking_failures = 0
        if child.request is not None:
            self._start(child, child.request)
        self._serve_waiting()

    def _created(self, child: Child, request: Request, report: Report) -> None:
        child.move(ChildState.LIVE)
        child.request = None
        del self._young[child]
        self._hang_up(child)
        message = {
            "op": "created",
            "id": request.number,
            "record": self._record(child, request),
            "stages": {**request.stages, **report.stages, "reported": time.monotonic()},
        }
        self._quiet_since = time.monotonic()
        try:
            self._send(message, (child.pidfd, *child.ways_out))
        except _ServerGone:
            syscalls.pidfd_kill(child.pidfd)  # nobody knows of it
            raise
        child.close_ways_out()
        self._serve_waiting()

    def _hang_up(self, child: Child) -> None:
        if child.control.fileno() >= 0:
            self._selector.unregister(child.control)
            child.control.close()

    def _discard(self, child: Child, reason: str) -> None:
        """Ends a child that is no sandbox yet; `_ended` frees what it had."""
        if child.state is ChildState.ENDING:
            return
        if child.request is not None and child.state in COMING and not child.request.tried_again:
            # The create that waits for it has not been touched by its end: another child, once.
            child.request.tried_again = True
            self._waiting.add_first(child.request)
            child.request = None
        if child.request is None:
            if child.key is not None:
                self._demand.forget(child.key)  # its template's fault, most likely
            else:
                self._parking_failures += 1
            print(f"a sandbox made ahead failed: {reason}", file=sys.stderr, flush=True)
        self._drop(child)
        if child.request is not None:
            self._failed[child] = (child.request, reason)
            child.request = None

    def _ended(self, child: Child) -> None:
        """Reaps. Whatever is in the sandbox's pid namespace is dead when its first process can be waited for."""
        _, status = os.waitpid(child.pid, 0)
        if child.state is not ChildState.LIVE:
            self._discard(child, _ENDED_EARLY)
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        child.close_ways_out()
        self._young.pop(child, None)
        self._factory.take_back(child)
        if child.root is not None:
            child.root.discard()
        if child.state is ChildState.LIVE:
            self._send({"op": "exited", "pid": child.pid, "status": status})
            return
        if not child.group.try_remove():
            self._unremoved.append(child.group)
        if (failure := self._failed.pop(child, None)) is not None:
            self._refuse(*failure)  # only now: nothing of it is left
        self._serve_waiting()

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
        for request in [*self._waiting, *(child.request for child in unfinished if child.request is not None)]:
            self._let_go(request)
        for group in self._unremoved:
            group.remove(1.0)
        for root in self._spent:
            root.discard()
        self._disks.close()
        self._layers.close()


def _mounts(child: Child, request: Request) -> list[int]:
    """Of its volumes, whose owners are shifted as those of its root are, and of its devices. Raises OSError."""
    if not request.has_mounts:
        return []
    made: list[int] = []
    userns = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for device, _ in request.volumes:
            made.append(volume.mount(device))
            mounts.shift_owners(made[-1], userns)
        for source, _ in request.devices:
            made.append(mounts.clone(source, attributes=mounts.NOSUID | mounts.NOEXEC))
        for source, _ in request.shown:
            made.append(mounts.clone(source, attributes=mounts.NOSUID | mounts.NODEV | mounts.RDONLY))
    except BaseException:
        for mount in made:
            os.close(mount)
        raise
    finally:
        os.close(userns)
    return made


class _ServerGone(Exception):
    """The line to the server is closed."""


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
            no_disk=chosen["no_disk"],
            rootless=chosen["rootless"],
        )
        _held = shared_heap.settle()
        gc.disable()  # it writes to what it looks at
        zygote.run()
    except (ImportError, AttributeError, OSError, ValueError) as error:
        status = 1
        with contextlib.suppress(OSError):
            messages.send(server, {"op": "broken", "error": f"{type(error).__name__}: {error}"})
        print(f"zygote: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(status)
