"""One live sandbox, known to the host by two things: a process (by pidfd) whose end is its end, and its cgroup.

    LIVE ── kill() or that process ends ──► releasing (cgroup, socket file) ──► ended

Owns what is alike in every tier on Linux: the end and its callbacks, freeze and thaw, readings, new limits. The
ways in and out of a sandbox, how its limits are applied and how its end is worded are the tier's own (`_apply`,
`_processes`, `_inside`, `_how_it_ended`, `_empty_group`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import structlog

from atoll.isolation.base import GUEST_SOCKET, DiskUse, ExitReport, SandboxHandle
from atoll.isolation.linux.cgroups.groups import Cgroups, Group, Usage
from atoll.isolation.linux.disk import growth, loops
from atoll.isolation.linux.disk import usage as disk_usage
from atoll.isolation.linux.disk.image import IMAGE
from atoll.isolation.linux.net import control
from atoll.isolation.linux.process_identity import has_ended, open_recorded
from atoll.isolation.linux.sys.syscalls import pidfd_kill
from atoll.model.errors import BackendUnavailable, PlatformError, SandboxGone
from atoll.model.sandbox import Limits, OomKill, SandboxSpec, SandboxStats

_log = structlog.get_logger("atoll.node")

_DIE_WITHIN_S = 7.0
_FREEZE_WITHIN_S = 5.0
_DISK_READING_LASTS_S = 10.0
_OOM_BURST = 10
_OOM_EVERY_S = 10.0
"""A sandbox may end its own processes a thousand times a second this way: so many are reported at once, then one in ten
seconds with the number of the others."""


class LinuxSandbox(SandboxHandle):
    """See SandboxHandle. Made by its backend only; owns `pidfd`. `on_end` is called once, after all is freed."""

    enforced: ClassVar[frozenset[str]]
    """Controllers without which this tier cannot keep the limits that it announces."""
    init_process: ClassVar[str]
    """What the process of the pidfd is, for messages."""

    def __init__(
        self,
        spec: SandboxSpec,
        state_dir: Path,
        record: Mapping[str, Any],
        pidfd: int,
        cgroups: Cgroups,
        on_end: Callable[[Any], None],
    ) -> None:
        self.sandbox_id = spec.sandbox_id
        self.pid = int(record["pid"])
        self.stages: Mapping[str, float] = {}
        self._record = dict(record)
        self._pidfd = pidfd
        self._group: Group = cgroups.group(record["group"])
        self._limited = cgroups.limited
        self._can_freeze = cgroups.can_freeze
        self._on_end = on_end
        self._limits = Limits.from_json(record["limits"]) if "limits" in record else spec.limits
        self._state_dir = state_dir
        self._killed = False
        self._frozen = False
        self._thaws = 0
        """How often it was let go on."""
        self._unshown = False
        """Its limits were changed while it was frozen."""
        self._detached = False
        self._failure: str | None = None
        self._loop = asyncio.get_running_loop()
        self._dead = asyncio.Event()
        self._ended: asyncio.Future[ExitReport] = self._loop.create_future()
        self._releasing: asyncio.Task[None] | None = None
        self._cpu: tuple[float, float] | None = None
        self._disk: tuple[float, int | None] | None = None
        self._device: str | None = None
        """The loop device of its disk, once it was looked up."""
        self._on_oom: Callable[[OomKill], None] | None = None
        self._oom_kills = 0
        """Of those that the kernel has counted, how many were reported or summed up."""
        self._oom_unexplained = 0
        self._oom_unsaid = 0
        self._oom_allowance = (0.0, float(_OOM_BURST))
        self._loop.add_reader(pidfd, self._on_init_exit)

    def _check_alive(self) -> None:
        if self._dead.is_set() or has_ended(self._pidfd):
            raise SandboxGone(self.sandbox_id, "killed" if self._killed else f"{self.init_process} ended")

    # -- ended because memory ran out ----------------------------------------------------------------------------------

    def on_oom(self, callback: Callable[[OomKill], None]) -> None:
        """See SandboxHandle."""
        self._on_oom = callback

    def forget_oom_kills(self) -> None:
        """Those counted until now are known already."""
        self._oom_kills = self._group.usage().oom_kills or 0

    def note_oom_kill(self, victim: OomKill) -> None:
        """Somebody saw it. Nothing happens if the kernel has counted none that is not known: it was another's."""
        counted = self._group.usage().oom_kills
        if counted is not None and counted <= self._oom_kills:
            return
        self._oom_kills += 1
        self._report_oom(victim)

    def _look_for_oom_kills(self, counted: int | None) -> None:
        """At every reading. The kernel log may still explain it; what is unexplained at the next one is reported."""
        missing = (counted or 0) - self._oom_kills
        if missing > 0 and self._oom_unexplained:
            explained_late = min(missing, self._oom_unexplained)
            self._oom_kills += explained_late
            self._oom_unsaid += explained_late - 1
            self._report_oom(OomKill())
        self._oom_unexplained = max(0, (counted or 0) - self._oom_kills)

    def _report_oom(self, victim: OomKill) -> None:
        then, allowed = self._oom_allowance
        now = time.monotonic()
        allowed = min(float(_OOM_BURST), allowed + (now - then) / _OOM_EVERY_S)
        if allowed < 1 or self._on_oom is None:
            self._oom_unsaid += 1
            return
        self._oom_allowance = (now, allowed - 1)
        others, self._oom_unsaid = self._oom_unsaid, 0
        self._on_oom(replace(victim, others=others))

    # -- what is the tier's own ----------------------------------------------------------------------------------------

    @abstractmethod
    async def _apply(self, limits: Limits) -> None:
        """Enforces new limits. Raises OSError, ValueError, TimeoutError, BackendUnavailable."""

    @abstractmethod
    async def _empty_group(self) -> bool:
        """Once the first process has ended: nothing remains and the cgroup is removed. Raises OSError."""

    @abstractmethod
    async def _how_it_ended(self, oom_kills: int | None) -> str:
        """Words for an unexpected end. `oom_kills`: how many processes the kernel's OOM killer ended."""

    async def _processes(self, usage: Usage) -> int | None:
        """How many processes the sandbox has."""
        return usage.pids

    @property
    def group(self) -> str:
        """The name of its cgroup."""
        return self._group.name

    @abstractmethod
    def _inside(self) -> Iterable[int]:
        """Processes whose root is the sandbox's own. Blocking; called in a thread."""

    def _close(self) -> None:
        """Lets go of what the handle holds beside the pidfd, once the init_process has stopped."""

    # -- readings ------------------------------------------------------------------------------------------------------

    async def stats(self) -> SandboxStats:
        """See SandboxHandle. The disk figure may be some seconds old."""
        self._check_alive()
        usage = self._group.usage()
        self._look_for_oom_kills(usage.oom_kills)
        now = time.monotonic()
        percent = None
        if usage.cpu_s is not None:
            then, used = self._cpu or (now, usage.cpu_s)
            percent = 100.0 * (usage.cpu_s - used) / (now - then) if now > then else 0.0
            self._cpu = (now, usage.cpu_s)
        if self._disk is None or now - self._disk[0] > _DISK_READING_LASTS_S:
            self._disk = (now, await asyncio.to_thread(self._disk_used))
        return SandboxStats(
            cpu_used_pct=percent,
            memory_used=usage.memory_bytes,
            memory_cache=usage.cache_bytes,
            memory_total=self._limits.memory_mib << 20,
            disk_used=self._disk[1],
            disk_total=self._limits.disk_mib << 20,
            pids=await self._processes(usage),
        )

    def _disk_used(self) -> int | None:
        """Bytes of its disk in use. Blocking; called in a thread."""
        if not self._record.get("disk_mib"):
            return disk_usage.of_tree(self._state_dir / "upper")
        found = self._disk_seen()
        return (found.f_blocks - found.f_bfree) * found.f_frsize if found is not None else None

    def _disk_seen(self) -> os.statvfs_result | None:
        for pid in self._inside():
            with contextlib.suppress(OSError):
                return os.statvfs(f"/proc/{pid}/root")
        return None

    async def disk_use(self) -> DiskUse | None:
        """See SandboxHandle."""
        return await asyncio.to_thread(self._disk_use)

    async def allow_disk(self, more: int | None) -> None:
        """See SandboxHandle."""
        await asyncio.to_thread(self._allow_disk, more)

    def _disk_use(self) -> DiskUse | None:
        if not self._record.get("disk_mib") or (seen := self._disk_seen()) is None:
            return None
        with contextlib.suppress(OSError):
            return growth.use_of(self._state_dir / IMAGE, seen)
        return None

    def _allow_disk(self, more: int | None) -> None:
        if (device := self._loop_device()) is not None and (seen := self._disk_seen()) is not None:
            with contextlib.suppress(OSError):
                growth.allow(device, seen, more)

    def _loop_device(self) -> str | None:
        image = self._state_dir / IMAGE
        if self._device is None or not loops.is_on(self._device, image):
            self._device = loops.device_of(image)
        return self._device

    async def limit_disk(self, mib_s: int | None) -> None:
        """See SandboxHandle."""
        try:
            done = await asyncio.to_thread(self._limit_disk, None if mib_s is None else mib_s << 20)
        except OSError as error:
            self._check_alive()
            raise BackendUnavailable(f"the disk of sandbox {self.sandbox_id!r} has no rate: {error}") from error
        if not done:
            raise BackendUnavailable(
                "this machine cannot limit how fast a sandbox's disk is",
                hint="it needs disks of their own and the cgroup controller io (version 1: blkio); see `atoll doctor`",
            )

    def _limit_disk(self, bytes_per_s: int | None) -> bool:
        device = self._loop_device()
        return device is not None and self._group.limit_disk(loops.number_of(device), bytes_per_s)

    async def update(self, limits: Limits) -> None:
        """See SandboxHandle."""
        self._check_alive()
        if missing := self.enforced - self._limited:
            raise BackendUnavailable(
                f"limits of {', '.join(sorted(missing))} cannot be enforced on this machine",
                hint="no writable cgroup controller; see `atoll doctor`",
            )
        if (held := self._record.get("disk_mib")) and limits.disk_mib != held:
            raise BackendUnavailable(
                f"the disk of sandbox {self.sandbox_id!r} has {held} MiB and keeps them",
                hint="choose its size when it is made",
            )
        try:
            await self._apply(limits)
        except (OSError, ValueError, TimeoutError) as error:
            self._check_alive()
            raise BackendUnavailable(
                f"the limits of sandbox {self.sandbox_id!r} cannot be changed: {error}",
                hint="it may use more memory now than the new limit allows, or be frozen",
            ) from error
        self._limits = limits
        self._record["limits"] = limits.as_json()
        await self._show_limits()

    # -- stop and go ---------------------------------------------------------------------------------------------------

    async def freeze(self) -> None:
        """See SandboxHandle."""
        self._check_alive()
        if not self._can_freeze:
            raise BackendUnavailable("this machine has no usable freezer", hint="see `atoll doctor`")
        deadline = self._loop.time() + _FREEZE_WITHIN_S
        try:
            self._group.begin_freeze()
            while not self._group.is_frozen():
                self._check_alive()
                if self._loop.time() > deadline:
                    raise PlatformError(f"sandbox {self.sandbox_id!r} did not freeze within {_FREEZE_WITHIN_S:.0f} s")
                await asyncio.sleep(0.001)
                self._group.begin_freeze()
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be frozen: {error}") from error
        except BaseException:
            if not self._dead.is_set():
                await self.thaw()
            raise
        self._frozen = True

    async def thaw(self) -> None:
        """See SandboxHandle."""
        self._check_alive()
        self._thaws += 1
        try:
            self._group.thaw()
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be thawed: {error}") from error
        self._frozen = False
        if self._unshown:
            await self._show_limits()

    async def _show_limits(self) -> None:
        """Has its guest show them to its programs; a frozen one does when it goes on. They hold in any case."""
        self._unshown = self._frozen
        if not self._frozen:
            body = {"limits": self._limits.as_json(), "processors": self._record.get("processors", [])}
            with contextlib.suppress(OSError, ValueError, TimeoutError):
                await control.request(self._state_dir / GUEST_SOCKET, "POST", "/limits", body)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def wait(self) -> ExitReport:
        """See SandboxHandle."""
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        """See SandboxHandle."""
        await self._end_init()
        if not self._ended.done():
            await asyncio.shield(self._ended)
        if self._failure is not None:
            await self._release()
        if self._failure is not None:
            raise PlatformError(self._failure)

    async def _end_kept(self, settle: Callable[[], None]) -> None:
        """Ends it for a pause, once what is kept of it has been written out. It cannot run on after that, so nothing is
        an error any more: what was too slow (this process may have stood still) is left to the next resume."""
        try:
            await self.kill()
            await asyncio.to_thread(settle)
        except (OSError, PlatformError) as error:
            _log.warning("sandbox.not_settled", sandbox_id=self.sandbox_id, error=str(error))

    async def _end_init(self) -> None:
        """Returns when its first process has ended. Raises PlatformError."""
        if self._detached:
            raise PlatformError(f"sandbox {self.sandbox_id!r} was left alone by this server; adopt it to end it")
        if self._dead.is_set():
            return
        self._killed = True
        pidfd_kill(self._pidfd, signal.SIGKILL)
        # A frozen process dies only when it may run again; the signal is there first, so it runs nothing else.
        if self._can_freeze:
            self._thaws += 1
            with contextlib.suppress(OSError):
                self._group.thaw()
        try:
            async with asyncio.timeout(_DIE_WITHIN_S):
                await self._dead.wait()
        except TimeoutError:
            raise PlatformError(
                f"sandbox {self.sandbox_id!r} does not die: process {self.pid} hangs in the kernel"
            ) from None

    def record(self) -> Mapping[str, Any]:
        """See SandboxHandle."""
        return dict(self._record)

    def detach(self) -> None:
        """This handle lets go of the sandbox, whose processes stay as they are; its `wait` will never return."""
        if not self._dead.is_set():
            self._dead.set()
            self._loop.remove_reader(self._pidfd)
            self._close()
            os.close(self._pidfd)
            self._detached = True

    def _on_init_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._dead.set()
        self._releasing = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        self._close()
        kills = None if self._killed else self._group.usage().oom_kills
        await self._release()
        os.close(self._pidfd)
        report = ExitReport(self._killed, "killed" if self._killed else await self._how_it_ended(kills))
        self._on_end(self)
        if not self._ended.done():
            self._ended.set_result(report)

    async def _release(self) -> None:
        """Frees what the kernel does not free by itself; `_failure` says what could not be."""
        self._failure = None
        with contextlib.suppress(OSError):
            (self._state_dir / GUEST_SOCKET).unlink()
        try:
            if not await self._empty_group():
                self._failure = f"cgroup {self._group.name} of sandbox {self.sandbox_id!r} cannot be removed"
                return
        except OSError as error:
            self._failure = f"cgroup of sandbox {self.sandbox_id!r}: {error}"
            return


_Handle = TypeVar("_Handle", bound=LinuxSandbox)


class LiveSandboxes(Generic[_Handle]):
    """The handles of one backend by the pid of their first process: one per sandbox, however often it is adopted."""

    def __init__(self, init_process: str, make: Callable[[SandboxSpec, Path, Mapping[str, Any], int], _Handle]) -> None:
        self._init_process = init_process
        self._make = make
        self._by_pid: dict[int, _Handle] = {}

    def add(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any], pidfd: int) -> _Handle:
        """A handle that owns `pidfd`. What `make` raises passes, with the descriptor closed."""
        try:
            handle = self._make(spec, state_dir, record, pidfd)
        except BaseException:
            os.close(pidfd)
            raise
        self._by_pid[handle.pid] = handle
        return handle

    def adopt(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any]) -> _Handle:
        """See IsolationBackend.adopt."""
        try:
            if (pidfd := open_recorded(record)) is None:
                raise SandboxGone(spec.sandbox_id, f"{self._init_process} is no more")
            if (known := self._by_pid.get(int(record["pid"]))) is not None:
                os.close(pidfd)
                return known
            handle = self.add(spec, state_dir, record, pidfd)
            handle.forget_oom_kills()
            return handle
        except (KeyError, TypeError, ValueError) as error:
            raise SandboxGone(spec.sandbox_id, f"its record is damaged: {error}") from error

    def get(self, pid: int) -> _Handle | None:
        """The living sandbox with that init_process."""
        return self._by_pid.get(pid)

    def __iter__(self) -> Iterator[_Handle]:
        return iter(list(self._by_pid.values()))

    def forget(self, handle: _Handle) -> None:
        """It has ended."""
        self._by_pid.pop(handle.pid, None)

    def detach_all(self) -> None:
        """The server stops."""
        for handle in list(self._by_pid.values()):
            handle.detach()
        self._by_pid.clear()
