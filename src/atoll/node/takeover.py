"""The start of a node: what earlier servers left is adopted, kept paused, ended, or left alone (see `adoption`)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

import structlog

from atoll.isolation import directory
from atoll.isolation.base import IsolationBackend, SandboxHandle
from atoll.isolation.directory import VERSION, Newer, Paused, Recorded
from atoll.isolation.guest_client import order
from atoll.model.errors import AtollError
from atoll.model.sandbox import PauseMode, SandboxPaths, SandboxState
from atoll.node.adoption import Fate, fate
from atoll.node.directories import SandboxDirectories
from atoll.node.driver import Making
from atoll.node.egress import NodeEgress
from atoll.node.gpus import NodeGpus
from atoll.node.live import LiveSandboxes
from atoll.node.templates import NodeTemplates
from atoll.node.tiers import Tiers
from atoll.node.volumes import NodeVolumes

_log = structlog.get_logger("atoll.node")


@dataclass(frozen=True, slots=True)
class StartReport:
    """How many sandboxes of earlier servers were adopted or removed, and how many were in the trash."""

    adopted: int
    removed: int
    trash: int


class TakeOver:
    """`run` once, before the first create."""

    def __init__(
        self,
        directories: SandboxDirectories,
        tiers: Tiers,
        live: LiveSandboxes,
        egress: NodeEgress,
        templates: NodeTemplates,
        volumes: NodeVolumes,
        gpus: NodeGpus,
    ) -> None:
        self._gpus = gpus
        self._volumes = volumes
        self._directories = directories
        self._tiers = tiers
        self._live = live
        self._egress = egress
        self._templates = templates

    async def run(self, left_in_trash: int) -> StartReport:
        """Adopts what still lives, frees all else."""
        found = self._directories.read_all()
        spare = _left_alone(found)
        unusable = await self._adopt_by_tier(found, spare)
        gone = [
            name
            for name, one in found.items()
            if name not in self._live
            and fate(one) is not Fate.LEAVE
            and not (isinstance(one, Recorded) and one.state.tier in unusable)
        ]
        for name in gone:
            self._directories.discard(self._directories.of(name))
        if len(gone) == len(found) and not unusable:
            self._templates.hold_nothing()
        report = StartReport(adopted=len(self._live), removed=len(gone), trash=left_in_trash)
        _log.info("node.took_over", adopted=report.adopted, removed=report.removed, trash=report.trash)
        return report

    async def _adopt_by_tier(self, found: Mapping[str, Recorded | Newer | None], spare: set[str]) -> set[str]:
        """Returns the tiers that do not start: their sandboxes may live, and touching their files would break them."""
        recorded = [one for one in found.values() if isinstance(one, Recorded)]
        unusable: set[str] = set()
        for tier in sorted({one.state.tier for one in recorded} | {self._tiers.chosen.backend.name}):
            try:
                backend = await self._tiers.get(tier)
            except AtollError as error:
                _log.error("node.tier_lost", tier=tier, error=str(error))
                unusable.add(tier)
                continue
            here = [one for one in recorded if one.state.tier == tier]
            await backend.settle_disks([self._directories.of(one.spec.sandbox_id) for one in here])
            await asyncio.gather(*(self._take(backend, one) for one in here))
            reclaimed = await backend.reclaim(spare | self._groups_of_paused())
            _log.info("node.reclaimed", tier=tier, processes=reclaimed.processes, cgroups=reclaimed.cgroups)
        return unusable

    def _groups_of_paused(self) -> set[str]:
        records = [live.driver.paused.record for _, live in self._live if live.driver.paused is not None]
        return {str(record.get("group", "")) for record in records}

    async def _take(self, backend: IsolationBackend, found: Recorded) -> None:
        what, making = fate(found), self._making(backend, found)
        if what is Fate.ADOPT:
            if (handle := await self._adopt(making, found)) is not None:
                self._run(making, found, handle)
                await self._egress.attach_adopted(handle, found.network)
                await _let_go_on(handle)
        elif what is Fate.END:
            if (handle := await self._adopt(making, found)) is not None:
                await _end(handle)
        elif what is Fate.KEEP:
            self._keep(making, found, found.state.paused)
        elif what is Fate.SETTLE:
            await self._settle(making, found)

    def _making(self, backend: IsolationBackend, found: Recorded) -> Making:
        paths = SandboxPaths(found.layers, self._directories.of(found.spec.sandbox_id))
        return Making(backend, found.spec, paths, self._volumes, self._gpus)

    async def _adopt(self, making: Making, found: Recorded) -> SandboxHandle | None:
        try:
            return await making.backend.adopt(found.spec, making.paths.state_dir, found.state.handle)
        except AtollError as error:
            _log.info("sandbox.not_adopted", sandbox_id=found.spec.sandbox_id, reason=str(error))
            return None

    def _run(self, making: Making, found: Recorded, handle: SandboxHandle) -> None:
        self._directories.upgrade(found)
        live = self._live.begin(making, lambda driver: driver.adopted(making, handle))
        live.driver.log_base = found.state.log_base
        self._live.publish(live, handle)

    def _keep(self, making: Making, found: Recorded, paused: Paused | None) -> None:
        """Paused, with whatever of it is still there. What is not is found out now: the machine may have restarted."""
        place = making.paths.state_dir
        mode = making.backend.kept(place, paused.record) if paused is not None else None
        if paused is None or mode is None:
            _log.error("sandbox.lost", sandbox_id=found.spec.sandbox_id, reason=f"nothing of it is whole: {place}")
            return
        kept = replace(paused, mode=PauseMode.FILESYSTEM if paused.mode is PauseMode.FILESYSTEM else mode)
        if kept != paused or found.state.state is not SandboxState.PAUSED:
            try:
                directory.end_pause(place, kept.mode, kept.record)
            except OSError as error:
                _log.error("sandbox.pause_not_settled", sandbox_id=found.spec.sandbox_id, error=str(error))
        live = self._live.begin(making, lambda driver: driver.adopted_paused(making, kept))
        live.driver.paused, live.driver.log_base, live.made = kept, found.state.log_base, True

    async def _settle(self, making: Making, found: Recorded) -> None:
        """A pause or resume that was cut off: it runs if its guest answers, else it is paused."""
        handle = await self._adopt(making, found)
        if handle is not None:
            try:
                await handle.thaw()
                await order(handle, "/hang-up", {})
                directory.move(making.paths.state_dir, SandboxState.RUNNING)
            except (AtollError, OSError) as error:
                _log.warning("sandbox.not_settled", sandbox_id=found.spec.sandbox_id, error=str(error))
                await _end(handle)
            else:
                self._run(making, found, handle)
                await self._egress.attach_adopted(handle, found.network)
                return
        paused = found.state.paused
        if paused is not None and found.state.state is SandboxState.PAUSING:
            paused = replace(paused, record=found.state.handle)
        self._keep(making, found, paused)


async def _let_go_on(handle: SandboxHandle) -> None:
    """It runs, by its record; a node that was killed while it copied the disk has left it standing still."""
    try:
        await handle.thaw()
    except AtollError as error:
        _log.warning("sandbox.not_thawed", sandbox_id=handle.sandbox_id, error=str(error))


async def _end(handle: SandboxHandle) -> None:
    try:
        await handle.kill()
    except AtollError as error:
        _log.error("sandbox.not_freed", sandbox_id=handle.sandbox_id, error=str(error))


def _left_alone(found: Mapping[str, Recorded | Newer | None]) -> set[str]:
    """The groups of those that this start does not touch; "" where one has none. Each is logged."""
    groups: set[str] = set()
    for name, one in found.items():
        if one is None or fate(one) is not Fate.LEAVE:
            continue
        if isinstance(one, Newer):
            reason = f"its record is of version {one.version}, this Atoll knows {VERSION}: start the newer one"
            _log.error("sandbox.left_alone", sandbox_id=name, reason=reason)
            groups.add(one.group)
        else:
            _log.info("sandbox.left_alone", sandbox_id=name, reason=f"it is {one.state.state}")
            groups.add(str(one.state.handle.get("group", "")))
    return groups
