"""The start of a node: what earlier servers left is adopted, ended, or left alone (`adoption` decides which)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from atoll.isolation.base import IsolationBackend
from atoll.isolation.directory import VERSION, Newer, Recorded
from atoll.model.errors import AtollError
from atoll.node.adoption import Fate, fate
from atoll.node.directories import SandboxDirectories
from atoll.node.egress import NodeEgress
from atoll.node.live import LiveSandboxes
from atoll.node.templates import NodeTemplates
from atoll.node.tiers import Tiers

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
    ) -> None:
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
            await asyncio.gather(*(self._adopt_or_end(backend, one) for one in recorded if one.state.tier == tier))
            reclaimed = await backend.reclaim(spare)
            _log.info("node.reclaimed", tier=tier, processes=reclaimed.processes, cgroups=reclaimed.cgroups)
        return unusable

    async def _adopt_or_end(self, backend: IsolationBackend, found: Recorded) -> None:
        spec, what = found.spec, fate(found)
        if what not in (Fate.ADOPT, Fate.END):
            return
        try:
            handle = await backend.adopt(spec, self._directories.of(spec.sandbox_id), found.state.handle)
            if what is Fate.END:
                await handle.kill()
                return
        except AtollError as error:
            _log.info("sandbox.not_adopted", sandbox_id=spec.sandbox_id, reason=str(error))
            return
        self._directories.upgrade(found)
        live = self._live.begin(spec.sandbox_id, backend.name, lambda driver: driver.adopted(handle))
        self._live.publish(live, handle, spec)
        await self._egress.attach_adopted(handle, found.network)


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
