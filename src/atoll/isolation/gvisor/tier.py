"""The gvisor tier as an IsolationBackend: runsc found and tried, a few sandboxes kept ready, one handle for each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from atoll.isolation.base import (
    BackendConfig,
    Capability,
    Captured,
    Finding,
    IsolationBackend,
    ReclaimReport,
    SandboxHandle,
)
from atoll.isolation.gvisor import bundle, doctor, fetch, runsc, saved, start
from atoll.isolation.gvisor.handle import GvisorHandle
from atoll.isolation.gvisor.pool import Kind, Pool
from atoll.isolation.gvisor.start import LaunchContext, LaunchOrder, PooledSandbox
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.cgroups.together import bound_all
from atoll.isolation.linux.disk import fold, thaw
from atoll.isolation.linux.disk import image as disk_image
from atoll.isolation.linux.disk.formats import Formats
from atoll.isolation.linux.disk.written import copy_written, keep_written
from atoll.isolation.linux.run_dir import RunDir
from atoll.isolation.linux.sandbox import LiveSandboxes
from atoll.isolation.linux.sys import syscalls
from atoll.isolation.linux.sys.id_ranges import IdRanges, read_delegated
from atoll.model.errors import BackendUnavailable, CreateFailed, MemoryLost, NotOffered
from atoll.model.sandbox import Limits, PauseMode, SandboxPaths, SandboxSpec

READY = 2
"""Sandboxes kept waiting. Each costs about 60 MB."""

READY_SETTING = "ATOLL_GVISOR_READY"
"""Another number of them; 0: none."""

_COLD_AT_ONCE = 4
"""A cold start is work for a whole processor: more at once only make all of them late."""

_CAPABILITY_OF_CONTROLLER = {"memory": Capability.LIMITS_MEMORY, "cpu": Capability.LIMITS_CPU}


class GvisorBackend(IsolationBackend):
    """See IsolationBackend. `ready` is for tests and measurements."""

    name = "gvisor"

    def __init__(self, config: BackendConfig, *, ready: int | None = None) -> None:
        self._config = config
        wished = config.environ.get(READY_SETTING, "")
        self._ready = ready if ready is not None else int(wished) if wished.isdecimal() else READY
        self._run_dir = RunDir(config.run_dir)
        self._cgroups = Cgroups.probe(self._run_dir.cgroup_base)
        self._context: LaunchContext | None = None
        self._pool: Pool | None = None
        self._cold = asyncio.Semaphore(_COLD_AT_ONCE)
        self._live = LiveSandboxes(GvisorHandle.init_process, self._handle)
        self._closed = False

    @property
    def capabilities(self) -> frozenset[Capability]:
        """See IsolationBackend."""
        found = {known for name, known in _CAPABILITY_OF_CONTROLLER.items() if name in self._cgroups.limited}
        found.add(Capability.LIMITS_PIDS)  # the sentry's own pids controller
        if self._context is not None and self._context.network:
            found.add(Capability.EGRESS_POLICY)
        found |= {Capability.PAUSE, Capability.PAUSE_MEMORY, Capability.MEMORY_ON_DISK}
        if self._context is not None and self._context.disks is not None:
            found |= {Capability.LIMITS_DISK, Capability.SNAPSHOT, Capability.SNAPSHOT_MEMORY}
        if self._cgroups.can_freeze:
            found.add(Capability.FREEZE)
        return frozenset(found)

    async def doctor(self) -> list[Finding]:
        """See IsolationBackend."""
        return await doctor.examine(self._config, self._cgroups)

    async def fix(self) -> list[str]:
        """See IsolationBackend: fetches runsc where none works."""
        try:
            await runsc.find(self._config.environ, self._config.tools_dir)
        except BackendUnavailable:
            if self._config.tools_dir is None:
                raise
            program = await asyncio.to_thread(fetch.fetch, self._config.tools_dir)
            return [f"runsc unpacked from Debian's package: {program}"]
        return []

    async def start(self) -> None:
        """See IsolationBackend."""
        if self._context is not None:
            return
        if os.geteuid() != 0:
            raise BackendUnavailable("the gvisor tier needs root", hint="start `atoll serve` as root")
        program = await runsc.find(self._config.environ, self._config.tools_dir)
        # One for all servers that share a tools directory: making it takes a second, checking it a few milliseconds.
        runtimes = self._config.tools_dir or self._run_dir.path / "runtime"
        try:
            self._run_dir.prepare()
            runtimes.mkdir(parents=True, exist_ok=True)
            self._cgroups.prepare()
            bound_all(self._cgroups, self._config.at_once, self.name)
        except OSError as error:
            raise BackendUnavailable(f"the gvisor tier cannot be set up: {error}") from error
        self._context = LaunchContext(
            runsc=program,
            platform=self._config.environ.get(runsc.PLATFORM_SETTING) or runsc.DEFAULT_PLATFORM,
            runtime=await bundle.prepare(runtimes, self._config.guest_entry),
            entry=self._config.guest_entry,
            cgroups=self._cgroups,
            ids=IdRanges(read_delegated()),
            network=not await doctor.why_no_network(),
            disks=None if await asyncio.to_thread(disk_image.why_not, self._run_dir.path) else Formats(),
        )
        self._pool = Pool(self._context, self._run_dir.path / "waiting", self._ready)

    async def aclose(self) -> None:
        """See IsolationBackend."""
        self._closed = True
        if self._pool is not None:
            await self._pool.aclose()
        if self._context is not None and self._context.disks is not None:
            await self._context.disks.aclose()
        self._live.detach_all()
        self._cgroups.remove_base()

    async def create(self, spec: SandboxSpec, paths: SandboxPaths) -> SandboxHandle:
        """See IsolationBackend."""
        asked = time.monotonic()
        context, pool = self._started()
        _check_devices(context, paths)
        kind, place = _kind(spec.limits, paths), paths.state_dir.absolute()
        if paths.memory is not None:
            plan = LaunchOrder(kind.lowers, spec.limits, place, volumes=paths.volumes, devices=paths.devices)
            return await self._from_snapshot(spec, plan, paths.memory)
        waiting = None if spec.one_off or paths.volumes or paths.devices else await pool.take(kind, spec.limits)
        if waiting is None:
            if context.disks is not None:  # known before it is its turn: it keeps nobody waiting meanwhile
                with contextlib.suppress(OSError):  # `launch_waiting` says so
                    await context.disks.pieces(spec.limits.disk_mib)
            async with self._cold:
                plan = LaunchOrder(kind.lowers, spec.limits, place, volumes=paths.volumes, devices=paths.devices)
                waiting = await start.launch_waiting(context, plan)
        record = await start.take_over(context, waiting, spec, place)
        handle = self._live.add(spec, place, record, waiting.pidfd)
        handle.stages = {"asked": asked, **{name: at for name, at in waiting.stages.items() if at >= asked}}
        return handle

    async def adopt(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any]) -> SandboxHandle:
        """See IsolationBackend."""
        handle = self._live.adopt(spec, state_dir, record)
        await handle.recover()
        return handle

    async def settle_disks(self, state_dirs: Sequence[Path]) -> None:
        """See IsolationBackend."""
        await asyncio.to_thread(thaw.thaw_all, [place / disk_image.IMAGE for place in state_dirs])
        await asyncio.to_thread(self._cgroups.lift_unused_disks)

    async def resume(
        self, spec: SandboxSpec, paths: SandboxPaths, record: Mapping[str, Any], mode: PauseMode
    ) -> SandboxHandle:
        """See IsolationBackend."""
        context, _ = self._started()
        limits = Limits.from_json(record["limits"]) if "limits" in record else spec.limits
        kind, place = _kind(limits, paths), paths.state_dir.absolute()
        _check_devices(context, paths)
        plan = LaunchOrder(kind.lowers, limits, place, True, volumes=paths.volumes, devices=paths.devices)
        if mode is PauseMode.MEMORY:
            made = await self._from_pause(spec, plan)
            handle = self._live.add(spec, place, _with_limits(made.record, record), made.pidfd)
        else:
            async with self._cold:
                waiting = await start.launch_waiting(context, plan)
            started = await start.take_over(context, waiting, replace(spec, limits=limits), place)
            handle = self._live.add(spec, place, _with_limits(started, record), waiting.pidfd)
        await asyncio.to_thread(saved.remove, place)
        return handle

    def kept(self, state_dir: Path, record: Mapping[str, Any]) -> PauseMode | None:
        """See IsolationBackend. A whole memory image says that the disk was written out before it."""
        if saved.is_there(state_dir / saved.MEMORY):
            return PauseMode.MEMORY
        if record.get("kept") or record.get("boot_id") == syscalls.boot_id():
            return PauseMode.FILESYSTEM
        return None

    async def keep_written(self, state_dir: Path, target: Path) -> Captured:
        """See IsolationBackend."""
        return Captured(await asyncio.to_thread(keep_written, state_dir, target))

    async def copy_written(self, state_dir: Path, target: Path) -> None:
        """See IsolationBackend."""
        await asyncio.to_thread(copy_written, state_dir, target)

    async def fold(self, layers: Sequence[Path], below: Sequence[Path], target: Path) -> Captured:
        """See IsolationBackend."""
        return Captured(await fold.run(layers, below, target))

    async def reclaim(self, spare: Set[str]) -> ReclaimReport:
        """See IsolationBackend."""
        unfinished = set(self._context.unfinished) if self._context is not None else set()
        left_over = self._cgroups.names() - unfinished - spare - {handle.group for handle in self._live}
        processes = 0
        for name in sorted(left_over):
            group = self._cgroups.group(name)
            processes += len(group.processes())
            await start.end_group(group)
        if not unfinished:
            await asyncio.to_thread(shutil.rmtree, self._run_dir.path / "waiting", ignore_errors=True)
        return ReclaimReport(processes=processes, cgroups=len(left_over))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _started(self) -> tuple[LaunchContext, Pool]:
        if self._context is None or self._pool is None or self._closed:
            raise CreateFailed("the gvisor tier is not started")
        return self._context, self._pool

    async def _from_pause(self, spec: SandboxSpec, plan: LaunchOrder) -> PooledSandbox:
        """The image is used up from the moment at which programs may write to the disk."""
        context, _ = self._started()
        memory, used = plan.place / saved.MEMORY, plan.place / saved.USED
        image = saved.find(memory, context.engine, context.runtimes)
        try:
            os.rename(memory, used)
        except OSError as error:
            raise CreateFailed(f"the memory of sandbox {spec.sandbox_id!r} cannot be taken: {error}") from error
        try:
            return await start.restore(context, replace(plan, image=replace(image, place=used)), spec, renamed=False)
        except start.NotLaunched:
            os.rename(used, memory)
            raise

    async def _from_snapshot(self, spec: SandboxSpec, plan: LaunchOrder, memory: Path) -> SandboxHandle:
        context, _ = self._started()
        try:
            image = saved.find(memory, context.engine, context.runtimes)
        except MemoryLost as error:
            raise CreateFailed(error.message, hint="make it with the snapshot's file system alone") from error
        made = await start.restore(context, replace(plan, image=image), spec, renamed=True)
        return self._live.add(spec, plan.place, made.record, made.pidfd)

    def _handle(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any], pidfd: int) -> GvisorHandle:
        return GvisorHandle(spec, state_dir, record, pidfd, self._cgroups, self._forget, self._context)

    def _forget(self, handle: GvisorHandle) -> None:
        self._live.forget(handle)
        if self._context is not None:
            self._context.ids.give_back(handle.id_base)


def _check_devices(context: LaunchContext, paths: SandboxPaths) -> None:
    """gVisor hands no device through: it serves those of NVIDIA by a proxy of its own. Raises NotOffered."""
    if not paths.devices.nodes:
        return
    if not paths.devices.nvidia:
        raise NotOffered(
            "the gvisor tier serves NVIDIA's GPUs alone",
            hint="start the server with `--isolation namespaces`",
        )
    if paths.memory is not None:
        raise NotOffered(
            "what was saved with its memory cannot be given a GPU afterwards",
            hint="make the snapshot of the file system alone",
        )
    if any(one.source != one.path for one in paths.devices.nodes):
        raise NotOffered("the gvisor tier shows a GPU's nodes only under the names that they have on the host")
    if "nvproxy" not in context.runsc.flags:
        raise NotOffered(f"runsc {context.runsc.version} has no proxy for NVIDIA's driver: install a newer one")


def _kind(limits: Limits, paths: SandboxPaths) -> Kind:
    try:
        kind = Kind.of(paths.lower_dirs, limits)
    except OSError as error:
        raise CreateFailed(f"a layer of the template is missing: {error}") from error
    if not kind.lowers:
        raise CreateFailed("the template has no layers")
    return kind


def _with_limits(record: Mapping[str, Any], earlier: Mapping[str, Any]) -> Mapping[str, Any]:
    """Limits that were changed while it ran stay changed."""
    return {**record, "limits": earlier["limits"]} if "limits" in earlier else record
