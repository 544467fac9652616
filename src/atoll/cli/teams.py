"""`atoll team`: makes teams and their first keys, in the store itself, beside a running server or without one."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from atoll.config import Settings
from atoll.control.access.keys import KeyService
from atoll.control.clock import SystemClock
from atoll.control.store import Store, Team
from atoll.model.errors import InvalidRequest, NotFound
from atoll.model.sealing import Seal, kept_key
from atoll.server.plan import control_dir, database_url

NAME_MAX = 255


def create(settings: Settings, name: str) -> dict[str, Any]:
    """A new team with a key. Raises InvalidRequest."""
    if not 1 <= len(name) <= NAME_MAX:
        raise InvalidRequest(f"a team's name has 1 to {NAME_MAX} characters")

    async def work() -> dict[str, Any]:
        async with _store(settings) as store:
            team = Team(str(uuid.uuid4()), name, SystemClock().now())
            await store.keys.add_team(team)
            made = await KeyService(store.keys, SystemClock()).add(team.team_id, "first key")
            return {"team_id": team.team_id, "name": name, "api_key": made.key}

    return asyncio.run(work())


def add_key(settings: Settings, team: str, name: str) -> dict[str, Any]:
    """A further key of a team, by its id or name. Raises NotFound."""

    async def work() -> dict[str, Any]:
        async with _store(settings) as store:
            found = [one for one in await store.keys.teams() if team in (one.team_id, one.name)]
            if len(found) != 1:
                known = ", ".join(f"{one.name} ({one.team_id})" for one in await store.keys.teams())
                raise NotFound(f"{len(found)} teams are called {team!r}", hint=f"teams: {known}")
            made = await KeyService(store.keys, SystemClock()).add(found[0].team_id, name)
            return {"team_id": found[0].team_id, "key_id": made.facts.key_id, "api_key": made.key}

    return asyncio.run(work())


def rows(settings: Settings) -> list[dict[str, Any]]:
    """All teams, oldest first."""

    async def work() -> list[dict[str, Any]]:
        async with _store(settings) as store:
            return [
                {"team_id": one.team_id, "name": one.name, "keys": len(await store.keys.of_team(one.team_id))}
                for one in await store.keys.teams()
            ]

    return asyncio.run(work())


def _store(settings: Settings) -> Store:
    control_dir(settings.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    return Store(database_url(settings), Seal(kept_key(settings.data_dir / "secret-key")))
