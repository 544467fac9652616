"""The data directory's file system is never full because of sandboxes: who may take more of it, decided and done.

    free (less what disks have promised already)
      > 2 x reserve   everybody may take what its limit says
      > reserve       no new sandbox; one that has more than an equal share gets no more, the others a part of the rest
      below           nobody gets more: programs inside get ENOSPC and lose nothing
      < reserve / 2   and somebody goes on taking what was allocated before: it is frozen until there is room

The reserve is what remains for the server's own state, the logs, and writes that were acknowledged. If others than
sandboxes fill the file system, a file of ours (`spare`) is given up, so that the server can still write its records.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from atoll.isolation.base import DiskUse, SandboxHandle
from atoll.model.errors import AtollError, QuotaExceeded
from atoll.node.volumes import NodeVolumes, NoVolumes

SPARE = "spare"
_SPARE_BYTES = 64 << 20
_NAP_S, _CALM_NAP_S = 0.5, 2.0
_CALM = 4
"""So many reserves of free space are far from any watermark."""
_STILL_GROWING = 1 << 20

_log = structlog.get_logger("atoll.node")


@dataclass(frozen=True, slots=True)
class Decision:
    """`more`: how many bytes each may still allocate; None: what its limit says. `frozen`: who is to stand still."""

    room: bool
    more: Mapping[str, int | None] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()


def decide(
    free: int, reserve: int, uses: Mapping[str, DiskUse], before: Mapping[str, DiskUse], frozen: frozenset[str]
) -> Decision:
    """Pure. `before`: the uses of the last time; `frozen`: who stands still now. Bytes."""
    promised = sum(max(use.allocated - use.taken, 0) for use in uses.values())
    rest = free - promised - reserve
    if rest > reserve:
        return Decision(room=True, more=dict.fromkeys(uses))
    share = (max(rest, 0) + sum(use.allocated for use in uses.values())) // max(len(uses), 1)
    small = [name for name, use in uses.items() if use.allocated < share]
    part = max(rest, 0) // max(len(small), 1)
    more: dict[str, int | None] = {name: part if name in small else 0 for name in uses}
    grown = {
        name
        for name, use in uses.items()
        if name in before and name not in small and use.taken - before[name].taken >= _STILL_GROWING
    }
    stays = frozen & uses.keys() if free < reserve else frozenset[str]()
    return Decision(False, more, stays | (grown if free < reserve // 2 else frozenset[str]()))


class DiskSpace:
    """`run` is its task. `place`: a directory on the file system; `reserve`: bytes of it, 0: it is not watched."""

    def __init__(self, place: Path, reserve: int) -> None:
        self._place = place
        self._reserve = reserve
        self._volumes: NodeVolumes = NoVolumes()
        self._before: Mapping[str, DiskUse] = {}
        self._more: dict[str, int | None] = {}
        self._frozen: frozenset[str] = frozenset()
        self._room = True
        self._round = 0

    def check_room(self) -> None:
        """Raises QuotaExceeded where there is too little for another sandbox."""
        free = self._free()
        if self._reserve and (not self._room or free <= 2 * self._reserve):
            raise QuotaExceeded(
                f"no room on the disk for another sandbox: the data directory's file system has {free >> 20} MiB free, "
                f"and {2 * self._reserve >> 20} MiB have to stay",
                hint="kill sandboxes, or make room; see ATOLL_DISK_RESERVE_MIB",
            )

    async def run(self, live: Callable[[], Mapping[str, SandboxHandle]], volumes: NodeVolumes | None = None) -> None:
        """Until cancelled. `live`: the sandboxes of now. A volume takes space as they do, and is never frozen."""
        self._volumes = volumes or NoVolumes()
        await asyncio.to_thread(self._set_aside)
        while self._reserve:
            try:
                nap = await self._look(live)
            except OSError as error:
                _log.error("disk.not_watched", error=str(error))
                nap = _CALM_NAP_S
            await asyncio.sleep(nap)

    async def _look(self, sandboxes: Callable[[], Mapping[str, SandboxHandle]]) -> float:
        free = self._free()
        calm = free > _CALM * self._reserve
        self._round += 1
        if calm and self._room and self._round % 5:
            return _CALM_NAP_S
        if free < _SPARE_BYTES // 4:
            await asyncio.to_thread(self._give_up_spare)
        live = dict(sandboxes())
        found = {name: await handle.disk_use() for name, handle in live.items()}
        uses = {name: use for name, use in found.items() if use is not None} | await self._volumes.uses()
        decision = decide(free, self._reserve, uses, self._before, self._frozen)
        self._before = uses
        await self._carry_out(decision, live)
        if decision.room and calm:
            await asyncio.to_thread(self._set_aside)
        return _CALM_NAP_S if calm and decision.room else _NAP_S

    async def _carry_out(self, decision: Decision, live: Mapping[str, SandboxHandle]) -> None:
        if decision.room is not self._room:
            _log.warning("disk.room" if decision.room else "disk.low", free_mib=self._free() >> 20)
        self._room = decision.room
        for name, more in decision.more.items():
            if more is not None or self._more.get(name) is not None:
                await (live[name].allow_disk(more) if name in live else self._volumes.allow(name, more))
        self._more = dict(decision.more)
        for name in decision.frozen ^ self._frozen:
            if name not in live:
                continue
            with contextlib.suppress(AtollError):
                await (live[name].freeze() if name in decision.frozen else live[name].thaw())
                _log.warning("disk.sandbox_frozen", sandbox_id=name, frozen=name in decision.frozen)
        self._frozen = decision.frozen

    def _free(self) -> int:
        space = os.statvfs(self._place)
        return space.f_bavail * space.f_frsize

    def _set_aside(self) -> None:
        """The file that is given up in need. Blocks."""
        path = self._place / SPARE
        size = min(self._reserve // 8, _SPARE_BYTES)
        with contextlib.suppress(OSError):
            if self._reserve and (not path.exists() or path.stat().st_size < size):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(descriptor, 0, size)
                finally:
                    os.close(descriptor)

    def _give_up_spare(self) -> None:
        with contextlib.suppress(OSError):
            (self._place / SPARE).unlink()
            _log.error("disk.full", advice="make room: what was set aside for the server's own records is used now")
