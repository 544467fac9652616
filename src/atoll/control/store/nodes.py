"""The table of nodes: those that were added while a server runs, and which of all nodes drain."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from atoll.control.store.database import Database
from atoll.control.store.schema import nodes
from atoll.model.node_addresses import NodeAddress


@dataclass(frozen=True, slots=True)
class NodeRow:
    """`address`: None for one that is known by another way (the machine's own, one by setting)."""

    node_id: str
    address: NodeAddress | None
    draining: bool


class NodeTables:
    """Part of the Store, on its database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def all(self) -> list[NodeRow]:
        """By id."""
        rows = await self._database.read(select(nodes).order_by(nodes.c.node_id))
        return [
            NodeRow(
                row["node_id"],
                NodeAddress(row["node_id"], row["host"], row["port"]) if row["host"] is not None else None,
                row["draining"],
            )
            for row in rows
        ]

    async def put_address(self, address: NodeAddress, at: datetime) -> None:
        """In place of the one before."""
        await self._put(address.node_id, at, host=address.host, port=address.port)

    async def set_draining(self, node_id: str, draining: bool, at: datetime) -> None:
        """Of any node, whether it has a row or not."""
        await self._put(node_id, at, draining=draining)

    async def remove(self, node_id: str) -> None:
        """Idempotent."""
        await self._database.write(delete(nodes).where(nodes.c.node_id == node_id))

    async def _put(self, node_id: str, at: datetime, **values: str | int | bool) -> None:
        change = update(nodes).where(nodes.c.node_id == node_id).values(**values)
        if await self._database.write(change):
            return
        try:
            row = {"node_id": node_id, "draining": False, "added_at": at, **values}
            await self._database.write(insert(nodes).values(row))
        except IntegrityError:  # added at the same time
            await self._database.write(change)
