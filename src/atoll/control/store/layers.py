"""Which image the inputs of a build's step have made, and which one an image of a registry has become."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, select

from atoll.control.store.database import Database
from atoll.control.store.schema import template_images, template_layers


@dataclass(frozen=True, slots=True)
class ImportedImage:
    """An image that was imported, and what sandboxes of it start with. `workdir` None: the home."""

    image_id: str
    env: Mapping[str, str]
    user: str
    workdir: str | None


class LayerTables:
    """Part of the Store, on its database. What is named here may be gone meanwhile."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_layer(self, key: str) -> str | None:
        """The newest image that a step of this key has made."""
        rows = await self._database.read(select(template_layers.c.image_id).where(template_layers.c.key == key))
        return rows[0]["image_id"] if rows else None

    async def put_layer(self, key: str, image_id: str) -> None:
        """In place of the one before."""
        await self._put(template_layers, {"key": key, "image_id": image_id})

    async def find_imported(self, key: str) -> ImportedImage | None:
        """The newest import of this key."""
        rows = await self._database.read(select(template_images).where(template_images.c.key == key))
        if not rows:
            return None
        settings = rows[0]["settings"]
        return ImportedImage(rows[0]["image_id"], settings["env"], settings["user"], settings["workdir"])

    async def put_imported(self, key: str, imported: ImportedImage) -> None:
        """In place of the one before."""
        settings = {"env": dict(imported.env), "user": imported.user, "workdir": imported.workdir}
        await self._put(template_images, {"key": key, "image_id": imported.image_id, "settings": settings})

    async def images(self) -> set[str]:
        """Every image that is named here."""
        found: set[str] = set()
        for table in (template_layers, template_images):
            found |= {row["image_id"] for row in await self._database.survey(select(table.c.image_id))}
        return found

    async def forget(self, image_ids: Collection[str]) -> None:
        """They are gone: nothing names them any more."""
        for table in (template_layers, template_images):
            await self._database.write(delete(table).where(table.c.image_id.in_(image_ids)))

    async def _put(self, table: Table, row: dict[str, Any]) -> None:
        def work(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")
            try:
                connection.execute(delete(table).where(table.c.key == row["key"]))
                connection.execute(insert(table).values(**row))
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")

        await self._database.run(work)
