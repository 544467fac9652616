"""Who holds how many sandboxes of what size, and where: the quotas' arithmetic. In memory, from the store at start.

A paused sandbox that holds no memory counts with its disk alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from atoll.control.sandboxes.sizing import KEYS
from atoll.model.errors import QuotaExceeded
from atoll.model.sandbox import Limits

_UNITS = {"cpu_count": "processors", "memory_mib": "MiB of memory", "disk_mib": "MiB of disk", "pids": "processes"}
_SETTINGS = {"cpu_count": "CPU", "memory_mib": "MEMORY_MIB", "disk_mib": "DISK_MIB", "pids": "PIDS"}


NO_TEAM = ""
"""Whose a sandbox is that waits for a team, or that cannot be ended: it counts for its node alone."""


@dataclass(frozen=True, slots=True)
class _Held:
    team_id: str
    node_id: str
    limits: Limits
    is_aside: bool = False
    """Paused, without memory."""
    kept: int = 0
    """Bytes of the disk that are kept of it while it is aside."""
    is_build: bool = False
    """Of a template build: nobody's to list or to end."""
    group: str = ""
    """Those of a team's that are to be apart (`orders.SPREAD_KEY`); "": of none."""


class SandboxQuota:
    """A sandbox is held from before it is made until after it is gone, so a quota cannot be outrun.

    `count`: how many a team may have. `team`, `node`: what the limits of all sandboxes of one team, and of one node,
    may add up to; None: anything. `node_total`: the same of that node by its own word, where it has given it.
    """

    def __init__(
        self,
        count: int,
        team: Limits | None = None,
        node: Limits | None = None,
        node_total: Callable[[str], Limits | None] = lambda _: None,
    ) -> None:
        self._count = count
        self._team = team
        self._node = node
        self._node_total = node_total
        self._held: dict[str, _Held] = {}
        self._per_team: dict[str, Counter[str]] = {}
        self._per_node: dict[str, Counter[str]] = {}
        self._per_group: Counter[tuple[str, str, str]] = Counter()

    def take(
        self,
        sandbox_id: str,
        team_id: str,
        node_id: str,
        limits: Limits,
        *,
        group: str = "",
        beyond_quota: bool = False,
    ) -> None:
        """Raises QuotaExceeded, unless it exists already and must be counted whatever the quota is now."""
        if not beyond_quota:
            if team_id != NO_TEAM:
                self._check_team(team_id, limits)
            if lacks := self.node_lacks(node_id, limits):
                raise QuotaExceeded(lacks, hint="kill some sandboxes, or try again later")
        self._replace(sandbox_id, _Held(team_id, node_id, limits, group=group))

    def take_for_build(self, sandbox_id: str, team_id: str, node_id: str, limits: Limits) -> None:
        """A sandbox that builds a template counts as any other of the team. Raises QuotaExceeded."""
        self._check_team(team_id, limits)
        if lacks := self.node_lacks(node_id, limits):
            raise QuotaExceeded(lacks, hint="kill some sandboxes, or try again later")
        self._replace(sandbox_id, _Held(team_id, node_id, limits, is_build=True))

    def release(self, sandbox_id: str) -> None:
        """Idempotent."""
        held = self._held.pop(sandbox_id, None)
        if held is None:
            return
        for sums, name in ((self._per_team, held.team_id), (self._per_node, held.node_id)):
            sums[name].subtract(_amounts(held))
            if not +sums[name]:
                del sums[name]
        if held.group:
            place = (held.team_id, held.group, held.node_id)
            self._per_group[place] -= 1
            if not self._per_group[place]:
                del self._per_group[place]

    def set_aside(self, sandbox_id: str, kept: int | None = None) -> None:
        """It is paused and holds no memory: from now on it counts with its disk alone. Idempotent.

        `kept`: bytes of the disk that it takes meanwhile; None: as many as when it was last.
        """
        held = self._held.get(sandbox_id)
        if held is not None:
            self._replace(sandbox_id, replace(held, is_aside=True, kept=held.kept if kept is None else kept))

    def kept_of(self, team_id: str) -> int:
        """Bytes of the disk that all paused ones of a team take that hold no memory."""
        return sum(held.kept for held in self._held.values() if held.team_id == team_id and held.is_aside)

    def take_back(self, sandbox_id: str) -> bool:
        """It is to run again. False: it counted all the time. Raises QuotaExceeded."""
        held = self._held.get(sandbox_id)
        if held is None or not held.is_aside:
            return False
        more = replace(held.limits, disk_mib=0)
        self._check_team(held.team_id, more)
        if lacks := self.node_lacks(held.node_id, more):
            raise QuotaExceeded(lacks, hint="kill or pause some sandboxes, or try again later")
        self._replace(sandbox_id, replace(held, is_aside=False))
        return True

    def _replace(self, sandbox_id: str, held: _Held) -> None:
        self.release(sandbox_id)
        self._held[sandbox_id] = held
        for sums, name in ((self._per_team, held.team_id), (self._per_node, held.node_id)):
            sums.setdefault(name, Counter()).update(_amounts(held))
        if held.group:
            self._per_group[held.team_id, held.group, held.node_id] += 1

    def node_of(self, sandbox_id: str) -> str | None:
        """None: it is not held."""
        held = self._held.get(sandbox_id)
        return held.node_id if held is not None else None

    def team_of(self, sandbox_id: str) -> str | None:
        """None: it is not held."""
        held = self._held.get(sandbox_id)
        return held.team_id if held is not None else None

    def on_node(self, node_id: str) -> int:
        """How many it runs or makes."""
        return self._per_node.get(node_id, Counter())["sandboxes"]

    def limits_on(self, node_id: str) -> Limits:
        """What the limits of all that it runs or makes add up to; of paused ones that hold no memory, their disks."""
        sums = self._per_node.get(node_id, Counter())
        return Limits(**{name: sums[name] for name in Limits.__slots__})

    def held_on(self, node_id: str) -> int:
        """How many of its sandboxes there are, paused ones too."""
        return sum(held.node_id == node_id for held in self._held.values())

    def node_lacks(self, node_id: str, limits: Limits) -> str:
        """Why a sandbox of that size has no room there any more; "" when it has."""
        return _beyond("the machine's sandboxes", "TOTAL", self._per_node.get(node_id), self._most_of(node_id), limits)

    def share(self, node_id: str) -> float:
        """How much of what its sandboxes' limits may add up to they do, of the scarcest kind; 0: nothing bounds it."""
        sums, most = self._per_node.get(node_id), self._most_of(node_id)
        if sums is None or most is None:
            return 0.0
        return float(max(sums[name] / max(1, getattr(most, name)) for name in Limits.__slots__))

    def in_group(self, team_id: str, group: str, node_id: str) -> int:
        """How many of a team's group are there, paused ones too."""
        return self._per_group[team_id, group, node_id] if group else 0

    def _most_of(self, node_id: str) -> Limits | None:
        return self._node_total(node_id) or self._node

    def all(self) -> list[str]:
        """The ids of all that take processors and memory, and are a team's sandboxes."""
        return [name for name, held in self._held.items() if not held.is_aside and _is_listed(held)]

    def all_with_paused(self) -> list[str]:
        """The ids of all that are a team's sandboxes."""
        return [name for name, held in self._held.items() if _is_listed(held)]

    def counts(self) -> dict[str, int]:
        """How many there are, by what they are: running (being made too), paused, or warm and nobody's yet."""
        running, teams = len(self.all()), len(self.all_with_paused())
        return {"running": running, "paused": teams - running, "warm": len(self._held) - teams}

    def _check_team(self, team_id: str, limits: Limits) -> None:
        sums = self._per_team.get(team_id, Counter())
        if sums["sandboxes"] >= self._count:
            raise QuotaExceeded(
                f"the team has {sums['sandboxes']} sandboxes and may have {self._count} at once",
                hint="kill some, or raise ATOLL_MAX_SANDBOXES",
            )
        if lacks := _beyond("the team's sandboxes", "TEAM", sums, self._team, limits):
            raise QuotaExceeded(lacks, hint="kill some")


def _is_listed(held: _Held) -> bool:
    return held.team_id != NO_TEAM and not held.is_build


def _amounts(held: _Held) -> dict[str, int]:
    return {"disk_mib": held.limits.disk_mib} if held.is_aside else {"sandboxes": 1, **held.limits.as_json()}


def _beyond(whose: str, setting: str, sums: Counter[str] | None, most: Limits | None, limits: Limits) -> str:
    for name in Limits.__slots__ if most is not None else ():
        held, requested = sums[name] if sums is not None else 0, getattr(limits, name)
        if held + requested > getattr(most, name):
            key = next(key for key, meant in KEYS.items() if meant == name)
            return (
                f"{whose} may have {getattr(most, name)} {_UNITS[name]} together; they have {held}, this one asks for "
                f"{requested}: ask for less (metadata {key}), or raise ATOLL_{setting}_{_SETTINGS[name]}"
            )
    return ""
