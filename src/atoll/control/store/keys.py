"""The tables of teams and API keys. Keys are there as digests only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from atoll.control.store.database import Database
from atoll.control.store.schema import api_keys, teams
from atoll.model.errors import Conflict


@dataclass(frozen=True, slots=True)
class ApiKey:
    """All that is known of a key: of its `length` characters (without `e2b_`) the first and the last few."""

    key_id: str
    team_id: str
    name: str
    created_at: datetime
    length: int = 0
    mask_prefix: str = ""
    mask_suffix: str = ""
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Team:
    """The owner of sandboxes, keys and a quota."""

    team_id: str
    name: str
    created_at: datetime


class KeyTables:
    """Part of the Store, on its database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, key: ApiKey, digest: str) -> None:
        """`digest`: the key's SHA-256 in hex. Raises Conflict: the id or the key exists, or the team does not."""
        row = {
            "key_id": key.key_id,
            "team_id": key.team_id,
            "name": key.name,
            "digest": digest,
            "created_at": key.created_at,
            "length": key.length,
            "mask_prefix": key.mask_prefix,
            "mask_suffix": key.mask_suffix,
        }
        try:
            await self._database.write(insert(api_keys).values(row))
        except IntegrityError as error:
            raise Conflict(f"API key {key.key_id!r} cannot be added to team {key.team_id!r}") from error

    async def of_team(self, team_id: str) -> list[ApiKey]:
        """Oldest first."""
        statement = select(api_keys).where(api_keys.c.team_id == team_id)
        return [
            _to_key(row)
            for row in await self._database.read(statement.order_by(api_keys.c.created_at, api_keys.c.key_id))
        ]

    async def rename(self, team_id: str, key_id: str, name: str) -> bool:
        """False: the team has no such key."""
        statement = update(api_keys).where(api_keys.c.team_id == team_id, api_keys.c.key_id == key_id)
        return bool(await self._database.write(statement.values(name=name)))

    async def remove(self, team_id: str, key_id: str) -> bool:
        """False: the team has no such key."""
        statement = delete(api_keys).where(api_keys.c.team_id == team_id, api_keys.c.key_id == key_id)
        return bool(await self._database.write(statement))

    async def team_of(self, digest: str) -> str | None:
        """The team of the key with this SHA-256 hex digest."""
        rows = await self._database.read(select(api_keys.c.team_id).where(api_keys.c.digest == digest))
        return rows[0]["team_id"] if rows else None

    async def used(self, digest: str, at: datetime) -> None:
        """Notes when a key was last used."""
        statement = update(api_keys).where(api_keys.c.digest == digest).values(last_used_at=at)
        await self._database.write(statement, volatile=True)

    async def add_team(self, team: Team) -> None:
        """Raises Conflict if there is one of that id."""
        row = {"team_id": team.team_id, "name": team.name, "created_at": team.created_at}
        try:
            await self._database.write(insert(teams).values(row))
        except IntegrityError as error:
            raise Conflict(f"team {team.team_id!r} exists already") from error

    async def teams(self) -> list[Team]:
        """All, oldest first."""
        rows = await self._database.read(select(teams).order_by(teams.c.created_at, teams.c.team_id))
        return [Team(row["team_id"], row["name"], row["created_at"]) for row in rows]

    async def team_name(self, team_id: str) -> str | None:
        """None: there is no such team."""
        rows = await self._database.read(select(teams.c.name).where(teams.c.team_id == team_id))
        return rows[0]["name"] if rows else None


def _to_key(row: RowMapping) -> ApiKey:
    return ApiKey(
        key_id=row["key_id"],
        team_id=row["team_id"],
        name=row["name"],
        created_at=row["created_at"],
        length=row["length"],
        mask_prefix=row["mask_prefix"],
        mask_suffix=row["mask_suffix"],
        last_used_at=row["last_used_at"],
    )
