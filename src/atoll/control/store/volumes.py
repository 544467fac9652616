"""The table of volumes. Their tokens lie in it sealed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import RowMapping, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from atoll.control.store.database import Database
from atoll.control.store.schema import sandboxes, volumes
from atoll.model.errors import Conflict
from atoll.model.sandbox import SandboxState
from atoll.model.sealing import Seal


@dataclass(frozen=True, slots=True)
class Volume:
    """`name` is unique within the team. `token`: None where it was sealed with another key."""

    volume_id: str
    team_id: str
    name: str
    node_id: str
    size_mib: int
    created_at: datetime
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class VolumeSums:
    """How many there are, and what their sizes add up to."""

    count: int
    size_mib: int


class VolumeTables:
    """Part of the Store, on its database. A volume is not ready until its node has made it."""

    def __init__(self, database: Database, seal: Seal) -> None:
        self._database = database
        self._seal = seal

    async def begin(self, volume: Volume) -> None:
        """Before its node makes it. Raises Conflict: the team has one of that name."""
        row = {
            "volume_id": volume.volume_id,
            "team_id": volume.team_id,
            "name": volume.name,
            "node_id": volume.node_id,
            "size_mib": volume.size_mib,
            "token": self._seal.close(volume.token or ""),
            "ready": False,
            "created_at": volume.created_at,
        }
        try:
            await self._database.write(insert(volumes).values(row))
        except IntegrityError as error:
            raise Conflict(f"a volume named {volume.name!r} exists already", hint="connect to it") from error

    async def made(self, volume_id: str) -> None:
        """Its node has made it."""
        await self._database.write(update(volumes).where(volumes.c.volume_id == volume_id).values(ready=True))

    async def going(self, volume_id: str) -> None:
        """Its node is to remove it: from now on it is no team's to use."""
        await self._database.write(update(volumes).where(volumes.c.volume_id == volume_id).values(ready=False))

    async def remove(self, volume_id: str) -> None:
        """Its node has none. Idempotent."""
        await self._database.write(delete(volumes).where(volumes.c.volume_id == volume_id))

    async def find(self, team_id: str, volume_id: str) -> Volume | None:
        """None: there is none, or it is another team's."""
        where = volumes.c.team_id == team_id, volumes.c.volume_id == volume_id, volumes.c.ready
        rows = await self._database.read(select(volumes).where(*where))
        return self._to_volume(rows[0]) if rows else None

    async def named(self, team_id: str, names: Collection[str]) -> dict[str, Volume]:
        """By name, those that are there."""
        where = volumes.c.team_id == team_id, volumes.c.name.in_(list(names)), volumes.c.ready
        rows = await self._database.read(select(volumes).where(*where))
        return {row["name"]: self._to_volume(row) for row in rows}

    async def of_team(self, team_id: str) -> list[Volume]:
        """By name."""
        where = volumes.c.team_id == team_id, volumes.c.ready
        rows = await self._database.read(select(volumes).where(*where).order_by(volumes.c.name))
        return [self._to_volume(row) for row in rows]

    async def unfinished(self) -> list[Volume]:
        """Whose making or removal was begun."""
        rows = await self._database.read(select(volumes).where(volumes.c.ready.is_(False)))
        return [self._to_volume(row) for row in rows]

    async def sums(self, *, team_id: str | None = None, node_id: str | None = None) -> VolumeSums:
        """Of all, of one team's or of one node's."""
        statement = select(func.count().label("count"), func.sum(volumes.c.size_mib).label("size"))
        statement = statement.select_from(volumes)
        if team_id is not None:
            statement = statement.where(volumes.c.team_id == team_id)
        if node_id is not None:
            statement = statement.where(volumes.c.node_id == node_id)
        row = (await self._database.read(statement))[0]
        return VolumeSums(int(row["count"]), int(row["size"] or 0))

    async def mounted_in(self, team_id: str, volume_id: str) -> list[str]:
        """The ids of the team's sandboxes, paused ones too, that have it."""
        where = (
            sandboxes.c.team_id == team_id,
            sandboxes.c.state != SandboxState.ENDED.value,
            sandboxes.c.volumes.is_not(None),
        )
        rows = await self._database.read(select(sandboxes.c.sandbox_id, sandboxes.c.volumes).where(*where))
        return [
            row["sandbox_id"] for row in rows if any(mount["volume_id"] == volume_id for mount in row["volumes"] or ())
        ]

    def _to_volume(self, row: RowMapping) -> Volume:
        return Volume(
            volume_id=row["volume_id"],
            team_id=row["team_id"],
            name=row["name"],
            node_id=row["node_id"],
            size_mib=row["size_mib"],
            created_at=row["created_at"],
            token=self._seal.open(row["token"]),
        )
