"""The table of secrets. Values lie in it sealed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from atoll.control.store.database import Database
from atoll.control.store.schema import secrets
from atoll.model.errors import Conflict
from atoll.model.sealing import Seal


@dataclass(frozen=True, slots=True)
class Secret:
    """All of a secret that may be shown. `name` is unique within the team, in lower case."""

    secret_id: str
    team_id: str
    name: str
    version: int
    metadata: Mapping[str, str]
    created_at: datetime
    updated_at: datetime


class SecretTables:
    """Part of the Store, on its database."""

    def __init__(self, database: Database, seal: Seal) -> None:
        self._database = database
        self._seal = seal

    async def add(self, secret: Secret, value: str) -> None:
        """Raises Conflict: the team has one of that name."""
        row = {
            "secret_id": secret.secret_id,
            "team_id": secret.team_id,
            "name": secret.name,
            "version": secret.version,
            "value": self._seal.close(value),
            "metadata": dict(secret.metadata),
            "created_at": secret.created_at,
            "updated_at": secret.updated_at,
        }
        try:
            await self._database.write(insert(secrets).values(row))
        except IntegrityError as error:
            raise Conflict(f"a secret named {secret.name!r} exists already", hint="update it") from error

    async def find(self, team_id: str, name: str) -> Secret | None:
        """By its id or its name."""
        rows = await self._database.read(select(secrets).where(_is(team_id, [name])))
        return _to_secret(rows[0]) if rows else None

    async def count(self, team_id: str) -> int:
        """How many a team has."""
        statement = select(func.count().label("count")).select_from(secrets).where(secrets.c.team_id == team_id)
        rows = await self._database.read(statement)
        return int(rows[0]["count"])

    async def page(self, team_id: str, after: str, limit: int) -> list[Secret]:
        """By name, beginning behind `after`."""
        statement = select(secrets).where(secrets.c.team_id == team_id, secrets.c.name > after)
        rows = await self._database.read(statement.order_by(secrets.c.name).limit(limit))
        return [_to_secret(row) for row in rows]

    async def change(
        self, team_id: str, name: str, value: str, metadata: Mapping[str, str] | None, at: datetime
    ) -> bool:
        """A new version; `metadata` None stays. False: there is none."""
        changes: dict[str, Any] = {"value": self._seal.close(value), "version": secrets.c.version + 1, "updated_at": at}
        if metadata is not None:
            changes["metadata"] = dict(metadata)
        return bool(await self._database.write(update(secrets).where(_is(team_id, [name])).values(**changes)))

    async def remove(self, team_id: str, name: str) -> bool:
        """With its value. False: there is none."""
        return bool(await self._database.write(delete(secrets).where(_is(team_id, [name]))))

    async def values(self, team_id: str, names: Collection[str]) -> dict[str, str]:
        """By each name or id that was asked for and is there."""
        rows = await self._database.read(select(secrets).where(_is(team_id, names)))
        opened = [(row, self._seal.open(row["value"])) for row in rows]
        return {known: value for row, value in opened if value is not None for known in (row["name"], row["secret_id"])}


def _is(team_id: str, names: Collection[str]) -> ColumnElement[bool]:
    return (secrets.c.team_id == team_id) & or_(secrets.c.name.in_(names), secrets.c.secret_id.in_(names))


def _to_secret(row: RowMapping) -> Secret:
    return Secret(
        secret_id=row["secret_id"],
        team_id=row["team_id"],
        name=row["name"],
        version=row["version"],
        metadata=row["metadata"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
