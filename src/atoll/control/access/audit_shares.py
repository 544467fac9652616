"""How much of the audit log a team and a key may fill, so that no one who floods it pushes out what others did.

The log holds so many bytes, and its oldest go. A team may fill an eighth of it at once and an eighth a day, one of its
keys half as much. With one team that floods, an entry of another stays for a week. Pure: the caller's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_PART = 8
_DAY_S = 86400.0
_MOST_KEPT = 10_000
_LISTED = 1000


class AuditShares:
    """A token bucket in bytes for each team, and one for each key. `clock` in seconds."""

    def __init__(self, most_bytes: int, clock: Callable[[], float]) -> None:
        self._team = most_bytes / _PART
        self._clock = clock
        self._spent: dict[tuple[str, str], tuple[float, float]] = {}
        """By team and key ("": all of the team's): when it was counted last, and bytes not yet made up for then."""

    def take(self, team: str, key: str, size: int) -> bool:
        """Whether an entry of `size` bytes is within both shares; one that is not does not count."""
        now, owed = self._clock(), {}
        for place, share in (((team, ""), self._team), ((team, key), self._team / 2)):
            owed[place] = self._owed(place, share, now) + size
            if owed[place] > share:
                return False
        if len(self._spent) > _MOST_KEPT:
            shares = {one: self._team / 2 if one[1] else self._team for one in self._spent}
            self._spent = {one: self._spent[one] for one, its in shares.items() if self._owed(one, its, now) > 0}
        self._spent |= {place: (now, amount) for place, amount in owed.items()}
        return True

    def _owed(self, place: tuple[str, str], share: float, now: float) -> float:
        since, owed = self._spent.get(place, (now, 0.0))
        return max(0.0, owed - (now - since) * share / _DAY_S)


@dataclass(slots=True)
class Summary:
    """What of a team's has no entry of its own. `since`: the time of the first."""

    since: str
    count: int = 0
    keys: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)

    def add(self, key: str, action: str, status: int) -> None:
        """One request."""
        self.count += 1
        _add(self.keys, key)
        _add(self.actions, f"{action} {status}")

    def entry(self, team: str, at: str) -> dict[str, Any]:
        """As the log has it: keys and actions, of very many those with fewest requests; none hides behind others."""
        return {
            "at": at,
            "action": "summary",
            "team": team,
            "since": self.since,
            "count": self.count,
            "keys": _rarest(self.keys),
            "actions": _rarest(self.actions),
        }


def _add(counts: Counter[str], name: str) -> None:
    counts[name if name in counts or len(counts) < _MOST_KEPT else "others"] += 1


def _rarest(counts: Counter[str]) -> dict[str, int]:
    """With `others`, the sum of those left out."""
    ranked = counts.most_common()
    named, others = dict(ranked[-_LISTED:]), sum(count for _, count in ranked[:-_LISTED])
    return {**named, "others": named.get("others", 0) + others} if others else named
