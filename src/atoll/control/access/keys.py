"""API keys of a team: made, named, listed by their masks, revoked. The key itself is shown once and kept nowhere."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from atoll.control.access.auth import Caller, digest_of, new_key
from atoll.control.clock import Clock
from atoll.control.store import ApiKey, KeyTables
from atoll.model.errors import NotFound, QuotaExceeded

MAX_KEYS = 100
"""Of one team."""

_SHOWN_FRONT = 2
_SHOWN_BACK = 4
PREFIX = "e2b_"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key as its maker sees it, once."""

    facts: ApiKey
    key: str = field(repr=False)


class KeyService:
    """Keys made here live in the store; those of the configuration are the operator's and are not listed."""

    def __init__(self, keys: KeyTables, clock: Clock) -> None:
        self._keys = keys
        self._clock = clock

    async def add(self, team_id: str, name: str) -> NewKey:
        """Raises QuotaExceeded; Conflict if there is no such team."""
        if len(await self._keys.of_team(team_id)) >= MAX_KEYS:
            raise QuotaExceeded(f"a team may have {MAX_KEYS} API keys", hint="delete one")
        key = new_key()
        value = key.removeprefix(PREFIX)
        facts = ApiKey(
            key_id=str(uuid.uuid4()),
            team_id=team_id,
            name=name,
            created_at=self._clock.now(),
            length=len(value),
            mask_prefix=value[:_SHOWN_FRONT],
            mask_suffix=value[-_SHOWN_BACK:],
        )
        await self._keys.add(facts, digest_of(key))
        return NewKey(facts, key)

    async def all(self, caller: Caller) -> list[ApiKey]:
        """The team's, oldest first."""
        return await self._keys.of_team(caller.team_id)

    async def rename(self, caller: Caller, key_id: str, name: str) -> None:
        """Raises NotFound: unknown, or another team's."""
        if not await self._keys.rename(caller.team_id, key_id, name):
            raise NotFound(f"API key {key_id[:100]!r} not found")

    async def revoke(self, caller: Caller, key_id: str) -> None:
        """It opens nothing from now on. Raises NotFound."""
        if not await self._keys.remove(caller.team_id, key_id):
            raise NotFound(f"API key {key_id[:100]!r} not found")
