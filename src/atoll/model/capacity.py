"""How much a machine has for sandboxes: derived from what it is, unless the operator says otherwise. Pure.

    Machine  what there is          ─┐
    Wishes   what the operator set  ─┴─► Capacity
                                         ├ maximum  one sandbox may be as large as this
                                         ├ team     all sandboxes of one team together, by their limits
                                         ├ total    all sandboxes of the machine together, by their limits
                                         └ at_once  what all of them together may really use at a time

Limits are promises that most sandboxes never call in: an idle one uses a few MiB of the memory that it may have. So the
sums of limits exceed the machine by the factors of OVERCOMMIT, and what is really used is bounded apart from them: a
control group around all sandboxes (memory, processes), and watermarks of the data directory's file system (disk).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.model.sandbox import Limits

OVERCOMMIT: Mapping[str, int] = {"cpu_count": 512, "memory_mib": 64, "disk_mib": 128, "pids": 64}
"""How many times what the machine has its sandboxes' limits may add up to."""
TEAM_SHARE = (3, 4)
"""Of the machine's sum for one team: the last place is never taken by a team that has all the others."""
_PIDS_SHARE = (3, 4)
"""Of the process numbers that the kernel has: the host can always start something."""
_ONE_SANDBOX_PIDS = 4
"""One sandbox may have a part in so many of the processes that all may have."""
_LEAST_FOR_HOST_MIB = 512
_HOST_MEMORY_SHARE = 10
_MOST_RESERVE_MIB = 10 * 1024
_RESERVE_SHARE = 20
_VOLUME_MIB = 10240
_LEAST = Limits(cpu_count=1, memory_mib=256, disk_mib=256, pids=256)
"""A machine is never found to have less: a server must be able to run at least one sandbox."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is. MiB. `disk_free_mib`: of the data directory's file system, what sandboxes have of it included."""

    processors: int
    memory_mib: int
    pids: int
    """How many process numbers the kernel gives out."""
    disk_size_mib: int
    disk_free_mib: int


@dataclass(frozen=True, slots=True)
class Amounts:
    """Some of a sandbox's limits, or sums of them. None: not configured."""

    cpu_count: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    pids: int | None = None

    def or_else(self, derived: Limits) -> Limits:
        """What was configured, and the rest from `derived`."""
        named = {name: getattr(self, name) for name in Limits.__slots__}
        return Limits(**{name: getattr(derived, name) if value is None else value for name, value in named.items()})


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator set."""

    maximum: Amounts = field(default_factory=Amounts)
    team: Amounts = field(default_factory=Amounts)
    total: Amounts = field(default_factory=Amounts)
    at_once: Amounts = field(default_factory=Amounts)
    disk_reserve_mib: int | None = None
    volume_mib: int | None = None
    volumes_mib: int | None = None
    team_images_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """See the module. Below `disk_reserve_mib` of free space sandboxes get no more of the disk."""

    maximum: Limits
    team: Limits
    total: Limits
    at_once: Limits
    disk_reserve_mib: int
    volume_mib: int = 10240
    """How much each volume can hold."""
    volumes_mib: int = 10240
    """What the sizes of all volumes together may add up to."""
    team_images_mib: int = 10240
    """What templates and snapshots of one team may take of the disk."""


def derive(machine: Machine, wishes: Wishes | None = None) -> Capacity:
    """What a machine has, with the operator's word before ours."""
    wishes = wishes or Wishes()
    reserve = wishes.disk_reserve_mib or min(machine.disk_size_mib // _RESERVE_SHARE, _MOST_RESERVE_MIB)
    for_host = max(_LEAST_FOR_HOST_MIB, machine.memory_mib // _HOST_MEMORY_SHARE)
    at_once = wishes.at_once.or_else(
        Limits(
            cpu_count=max(machine.processors, _LEAST.cpu_count),
            memory_mib=max(machine.memory_mib - for_host, _LEAST.memory_mib),
            disk_mib=max(machine.disk_free_mib - reserve, _LEAST.disk_mib),
            pids=max(_part(machine.pids, _PIDS_SHARE), _LEAST.pids),
        )
    )
    alone = {name: getattr(at_once, name) // (_ONE_SANDBOX_PIDS if name == "pids" else 1) for name in Limits.__slots__}
    maximum = wishes.maximum.or_else(Limits(**{name: max(most, getattr(_LEAST, name)) for name, most in alone.items()}))
    sums = {name: getattr(at_once, name) * OVERCOMMIT[name] for name in Limits.__slots__}
    total = wishes.total.or_else(Limits(**sums))
    shares = {name: max(_part(getattr(total, name), TEAM_SHARE), getattr(_LEAST, name)) for name in Limits.__slots__}
    team = wishes.team.or_else(Limits(**shares))
    volume = wishes.volume_mib or min(_VOLUME_MIB, at_once.disk_mib)
    volumes = wishes.volumes_mib or at_once.disk_mib * OVERCOMMIT["disk_mib"]
    # Of the whole disk, not of what is free: images are what took the rest.
    images = wishes.team_images_mib or max((machine.disk_size_mib - reserve) // 2, _LEAST.disk_mib)
    return Capacity(maximum, team, total, at_once, reserve, volume, volumes, images)


def _part(whole: int, share: tuple[int, int]) -> int:
    return whole * share[0] // share[1]
