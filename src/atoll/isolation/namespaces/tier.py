"""The namespaces tier as an IsolationBackend: one zygote, kept alive, and a handle for each sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import socket
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from atoll.isolation import directory
from atoll.isolation.base import (
    GUEST_SOCKET,
    BackendConfig,
    Capability,
    Captured,
    EgressSockets,
    Finding,
    IsolationBackend,
    ReclaimReport,
    SandboxHandle,
)
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.cgroups.together import bound_all
from atoll.isolation.linux.disk import fold, thaw
from atoll.isolation.linux.disk import image as disk_image
from atoll.isolation.linux.disk.written import copy_written, keep_written
from atoll.isolation.linux.net.network_thread import NetworkThread
from atoll.isolation.linux.process_identity import open_recorded
from atoll.isolation.linux.sandbox import LiveSandboxes
from atoll.isolation.linux.sys import rootless, syscalls
from atoll.isolation.linux.sys.id_ranges import HOST_IDS_PER_SANDBOX
from atoll.isolation.linux.sys.kernel_log import KernelLog, KilledForMemory, pid_inside
from atoll.isolation.namespaces import doctor, reclaim
from atoll.isolation.namespaces.dial import bind_guest_socket
from atoll.isolation.namespaces.disk_files import DiskFiles
from atoll.isolation.namespaces.disk_stock import DiskStock
from atoll.isolation.namespaces.handle import NamespacesHandle
from atoll.isolation.namespaces.layout import RunLayout
from atoll.isolation.namespaces.zygote_client import NEW, Created, OwnLayer, ZygoteClient, ZygoteLost
from atoll.model.errors import (
    AtollError,
    BackendUnavailable,
    CreateFailed,
    MemoryLost,
    PlatformError,
    SandboxGone,
)
from atoll.model.sandbox import OomKill, PauseMode, SandboxPaths, SandboxSpec

CREATE_WITHIN_S = 20.0
PARKED = 6
"""Children that wait ready: what a burst finds at once. Each costs about as much memory as an idle sandbox."""

REBOOT_HINT = 'connect with on_resume="reboot" starts it anew on its disk'

_SWEEP_SOON_S, _SOON, _SWEEP_EVERY_S = 1.0, 60, 60.0
"""What ends by itself may take its time on a busy machine."""

_CAPABILITY_OF_CONTROLLER = {
    "memory": Capability.LIMITS_MEMORY,
    "cpu": Capability.LIMITS_CPU,
    "pids": Capability.LIMITS_PIDS,
}


class NamespacesBackend(IsolationBackend):
    """See IsolationBackend. `parked` is for tests and measurements."""

    name = "namespaces"
    starts_beside_doctor = True

    def __init__(self, config: BackendConfig, *, parked: int = PARKED) -> None:
        self._config = config
        self._parked = parked
        self._layout = RunLayout(config.run_dir)
        self._cgroups = Cgroups.probe(self._layout.cgroup_base, apart=True)
        self._zygote: ZygoteClient | None = None
        self._starting = asyncio.Lock()  # at most one zygote is started at a time
        self._network: NetworkThread | None = None
        self._live = LiveSandboxes(NamespacesHandle.init_process, self._handle)
        self._closed = False
        self._sweeping: asyncio.Task[None] | None = None
        self._egress = False
        self._stock: DiskStock | None = None
        self._no_disk = ""
        """Why sandboxes have no disk of their own size; "" where they have one."""
        self._kernel_log: KernelLog | None = None
        self._rootless = False

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See IsolationBackend."""
        found = {_CAPABILITY_OF_CONTROLLER[name] for name in self._cgroups.limited}
        if self._rootless:
            found.add(Capability.ROOTLESS)
        found.add(Capability.PAUSE)
        if self._cgroups.can_freeze:
            found |= {Capability.FREEZE, Capability.PAUSE_MEMORY}
        if self._stock is not None:
            found |= {Capability.LIMITS_DISK, Capability.SNAPSHOT}
        if self._egress:
            found.add(Capability.EGRESS_POLICY)
        return frozenset(found)

    async def doctor(self) -> list[Finding]:
        """See IsolationBackend."""
        return await doctor.examine(self._layout, self._cgroups)

    async def start(self) -> None:
        """See IsolationBackend."""
        if syscalls.MACHINE not in syscalls.SUPPORTED_MACHINES:
            raise BackendUnavailable(
                f"the namespaces tier does not know {syscalls.MACHINE}",
                hint=f"it knows {', '.join(sorted(syscalls.SUPPORTED_MACHINES))}",
            )
        self._rootless = rootless.is_needed()
        try:
            self._layout.prepare()
            self._prepare_cgroups()
            _raise_descriptor_limit()
            if not self._rootless:
                self._network = self._network or NetworkThread()
        except OSError as error:
            raise BackendUnavailable(f"the namespaces tier cannot be set up: {error}") from error
        if self._kernel_log is None:
            with contextlib.suppress(OSError):  # then only the number of those killed is known; doctor says so
                self._kernel_log = KernelLog(self._note_oom_kill)
        self._no_disk = await asyncio.to_thread(disk_image.why_not, self._layout.disks)
        if not self._no_disk and self._stock is None:
            self._stock = DiskStock(self._layout.disks)
        zygote = await self._living_zygote()
        self._egress = not zygote.no_egress

    def _prepare_cgroups(self) -> None:
        try:
            self._cgroups.prepare()
            bound_all(self._cgroups, self._config.at_once, self.name)
        except OSError:
            # Visible but not ours to use (a container's read-only or delegated tree): go without, and say so.
            self._cgroups = Cgroups(self._layout.cgroup_base, {}, None, frozenset())

    async def aclose(self) -> None:
        """See IsolationBackend."""
        self._closed = True
        if self._sweeping is not None:  # what is left of it the next start finds
            self._sweeping.cancel()
            await asyncio.gather(self._sweeping, return_exceptions=True)
        if self._stock is not None:
            await self._stock.aclose()
        if self._zygote is not None:
            await self._zygote.aclose()
            self._zygote = None
        if self._kernel_log is not None:
            self._kernel_log.close()
            self._kernel_log = None
        self._live.detach_all()
        if self._network is not None:
            self._network.close()
            self._network = None
        self._cgroups.remove_base()

    async def create(self, spec: SandboxSpec, paths: SandboxPaths) -> SandboxHandle:
        """See IsolationBackend. A zygote that dies meanwhile is replaced, once."""
        if paths.memory is not None:
            raise CreateFailed(f"the tier {self.name!r} cannot make what runs in a snapshot go on")
        return await self._make(spec, paths, None)

    async def resume(
        self, spec: SandboxSpec, paths: SandboxPaths, record: Mapping[str, Any], mode: PauseMode
    ) -> SandboxHandle:
        """See IsolationBackend."""
        if mode is PauseMode.MEMORY:
            return await self._thaw(spec, paths, record)
        try:
            await self.end_paused(spec, paths.state_dir, record)
        except PlatformError as error:
            raise CreateFailed(error.message) from error
        return await self._make(spec, paths, DiskFiles(paths.state_dir, has_image=bool(record.get("disk_mib"))))

    async def _thaw(self, spec: SandboxSpec, paths: SandboxPaths, record: Mapping[str, Any]) -> SandboxHandle:
        try:
            handle = self._live.adopt(spec, paths.state_dir, record)
        except SandboxGone as error:
            raise MemoryLost(f"what ran in sandbox {spec.sandbox_id!r} has ended", hint=REBOOT_HINT) from error
        handle.forget_pause()
        try:
            directory.begin(paths.state_dir, self.name, handle.record())
            await handle.thaw()
        except (OSError, AtollError) as error:
            handle.detach()
            self._live.forget(handle)
            raise CreateFailed(f"sandbox {spec.sandbox_id!r} cannot go on: {error}") from error
        return handle

    def kept(self, state_dir: Path, record: Mapping[str, Any]) -> PauseMode | None:
        """See IsolationBackend."""
        try:
            pidfd = open_recorded(record)
        except (KeyError, TypeError, ValueError):
            return None
        if pidfd is not None:
            os.close(pidfd)
            if record.get("frozen"):
                return PauseMode.MEMORY
        is_whole = record.get("flushed") or record["boot_id"] == syscalls.boot_id()
        return PauseMode.FILESYSTEM if is_whole else None

    async def _make(self, spec: SandboxSpec, paths: SandboxPaths, own: DiskFiles | None) -> SandboxHandle:
        try:
            return await self._create(spec, paths, own)
        except ZygoteLost:
            await self._end_stray(spec, paths)
        try:
            return await self._create(spec, paths, own)
        except ZygoteLost as error:
            await self._end_stray(spec, paths)
            raise CreateFailed("the zygote died twice while it made the sandbox", hint=self._log_hint()) from error

    async def _create(self, spec: SandboxSpec, paths: SandboxPaths, own: DiskFiles | None) -> NamespacesHandle:
        try:
            zygote = await self._living_zygote()
        except BackendUnavailable as error:
            raise CreateFailed(error.message, hint=error.hint) from error
        path = paths.state_dir / GUEST_SOCKET
        try:
            layer = await _reopen(own) if own is not None else NEW
        except OSError as error:
            raise CreateFailed(f"the disk of sandbox {spec.sandbox_id!r} cannot be mounted: {error}") from error
        try:
            listener = bind_guest_socket(path)
        except OSError as error:
            layer.close()
            raise CreateFailed(f"the guest's socket cannot be made: {error}") from error
        try:
            with listener:
                created = await zygote.create(spec, paths, listener, CREATE_WITHIN_S, layer)
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        finally:
            layer.close()
        handle = self._live.add(spec, paths.state_dir, created.record, created.pidfd)
        handle.stages = created.stages
        if created.egress:
            handle.egress = EgressSockets(*(socket.socket(fileno=one) for one in created.egress))
        return handle

    async def adopt(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any]) -> SandboxHandle:
        """See IsolationBackend."""
        return self._live.adopt(spec, state_dir, record)

    async def settle_disks(self, state_dirs: Sequence[Path]) -> None:
        """See IsolationBackend."""
        await asyncio.to_thread(thaw.thaw_all, [place / disk_image.IMAGE for place in state_dirs])
        await asyncio.to_thread(self._cgroups.lift_unused_disks)

    async def keep_written(self, state_dir: Path, target: Path) -> Captured:
        """See IsolationBackend."""
        return Captured(await asyncio.to_thread(keep_written, state_dir, target))

    async def copy_written(self, state_dir: Path, target: Path) -> None:
        """See IsolationBackend."""
        await asyncio.to_thread(copy_written, state_dir, target)

    async def fold(self, layers: Sequence[Path], below: Sequence[Path], target: Path) -> Captured:
        """See IsolationBackend."""
        if self._rootless:
            return await super().fold(layers, below, target)
        return Captured(await fold.run(layers, below, target))

    async def reclaim(self, spare: Set[str]) -> ReclaimReport:
        """See IsolationBackend."""
        own = self._zygote.name if self._zygote is not None else None  # its children wait
        left_over = {name for name in self._unowned() - spare if own is None or not name.startswith(own)}
        report = await asyncio.to_thread(reclaim.reclaim, self._cgroups, left_over)
        self._sweep_soon()
        return report

    # -- inside --------------------------------------------------------------------------------------------------------

    def _handle(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any], pidfd: int) -> NamespacesHandle:
        return NamespacesHandle(spec, state_dir, record, pidfd, self._cgroups, self._live.forget, self._network)

    def _unowned(self) -> set[str]:
        return self._cgroups.names() - {handle.group for handle in self._live}

    def _sweep_soon(self) -> None:
        """A zygote has ended, or is about to: of a node that was killed, or ours. So do the children that waited there,
        whose groups nobody removes then."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._sweeping = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        for number in itertools.count():
            await asyncio.sleep(_SWEEP_SOON_S if number < _SOON else _SWEEP_EVERY_S)
            with contextlib.suppress(OSError):
                async with self._starting:
                    own = self._zygote.name if self._zygote is not None else None
                    left_over = {name for name in self._unowned() if own is None or not name.startswith(own)}
                await asyncio.to_thread(reclaim.remove_empty, self._cgroups, left_over)

    def _note_exit(self, pid: int, status: int) -> None:
        if (handle := self._live.get(pid)) is not None:
            handle.status = status

    def _note_oom_kill(self, killed: KilledForMemory) -> None:
        for handle in self._live:
            if 0 <= killed.uid - handle.id_base < HOST_IDS_PER_SANDBOX:
                pid = pid_inside(killed.pid, killed.uid)
                handle.note_oom_kill(OomKill(killed.name, pid, killed.memory_bytes))
                return

    async def _end_orphan(self, created: Created) -> None:
        for descriptor in created.egress:
            os.close(descriptor)
        with contextlib.suppress(AtollError):
            await self._live.add(created.spec, created.state_dir, created.record, created.pidfd).kill()

    async def _end_stray(self, spec: SandboxSpec, paths: SandboxPaths) -> None:
        """A lost zygote may have made the sandbox without being able to say so."""
        with contextlib.suppress(OSError, AtollError):
            await self._live.adopt(spec, paths.state_dir, directory.read_handle(paths.state_dir)).kill()

    async def _living_zygote(self) -> ZygoteClient:
        async with self._starting:
            if self._closed:
                raise BackendUnavailable("the namespaces tier is closed")
            if self._zygote is not None and self._zygote.lost.is_set():
                await self._zygote.aclose()
                if self._stock is not None:
                    await asyncio.to_thread(self._stock.remove_unused, self._zygote.name)
                self._zygote = None
                self._sweep_soon()
            if self._zygote is None:
                if not self._layout.disks.is_dir():
                    raise BackendUnavailable("the namespaces tier is not started")
                self._zygote = await ZygoteClient.start(
                    self._layout,
                    self._config.guest_entry,
                    self._parked,
                    self._no_disk,
                    self._note_exit,
                    self._end_orphan,
                    self._make_disk,
                )
            return self._zygote

    def _make_disk(self, zygote: ZygoteClient, size_mib: int) -> None:
        if self._stock is None or self._closed:
            zygote.refuse_disk(size_mib, "the server is stopping")
        else:
            self._stock.make(size_mib, zygote)

    def _log_hint(self) -> str:
        return f"see {self._layout.zygote_log}"


async def _reopen(own: DiskFiles) -> OwnLayer:
    opening = asyncio.get_running_loop().run_in_executor(None, own.reopen)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close_unused)
        raise


def _close_unused(opening: asyncio.Future[OwnLayer]) -> None:
    if opening.exception() is None:
        opening.result().close()


def _raise_descriptor_limit() -> None:
    """A sandbox costs the server one descriptor, and each connection two; the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
