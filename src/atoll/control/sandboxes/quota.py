"""Who holds how many sandboxes, and where: the quota's arithmetic. In memory, rebuilt from the store at start.

A paused sandbox that holds no memory is known, and where it is, but does not count: it takes disk alone.
"""

from __future__ import annotations

from collections import Counter

from atoll.model.errors import QuotaExceeded


class SandboxQuota:
    """A sandbox is held from before it is made until after it is gone, so a quota cannot be outrun."""

    def __init__(self, quota: int) -> None:
        self._quota = quota
        self._held: dict[str, tuple[str, str]] = {}
        self._set_aside: dict[str, tuple[str, str]] = {}
        self._per_team: Counter[str] = Counter()
        self._per_node: Counter[str] = Counter()

    def take(self, sandbox_id: str, team_id: str, node_id: str, *, beyond_quota: bool = False) -> None:
        """Raises QuotaExceeded, unless it exists already and must be counted whatever the quota is now."""
        if not beyond_quota and self._per_team[team_id] >= self._quota:
            raise QuotaExceeded(
                f"the team has {self._per_team[team_id]} sandboxes and may have {self._quota} at once",
                hint="kill some, or raise ATOLL_MAX_SANDBOXES",
            )
        self._held[sandbox_id] = (team_id, node_id)
        self._per_team[team_id] += 1
        self._per_node[node_id] += 1

    def release(self, sandbox_id: str) -> None:
        """Idempotent."""
        self._set_aside.pop(sandbox_id, None)
        held = self._held.pop(sandbox_id, None)
        if held is not None:
            self._per_team[held[0]] -= 1
            self._per_node[held[1]] -= 1

    def set_aside(self, sandbox_id: str) -> None:
        """It is paused and holds no memory: it does not count from now on. Idempotent."""
        held = self._held.get(sandbox_id)
        self.release(sandbox_id)
        if held is not None:
            self._set_aside[sandbox_id] = held

    def take_back(self, sandbox_id: str) -> bool:
        """It is to run again. False: it counted all the time. Raises QuotaExceeded."""
        aside = self._set_aside.get(sandbox_id)
        if aside is None:
            return False
        self.take(sandbox_id, *aside)
        del self._set_aside[sandbox_id]
        return True

    def node_of(self, sandbox_id: str) -> str | None:
        """None: it is not held."""
        held = self._held.get(sandbox_id) or self._set_aside.get(sandbox_id)
        return held[1] if held is not None else None

    def on_node(self, node_id: str) -> int:
        """How many it runs or makes."""
        return self._per_node[node_id]

    def all(self) -> list[str]:
        """The ids of all that count."""
        return list(self._held)

    def all_with_paused(self) -> list[str]:
        """The ids of all that are known."""
        return [*self._held, *self._set_aside]
