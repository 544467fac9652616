"""Brings a database to the schema of this Atoll as it is opened. Alembic is loaded only if there is work for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from atoll.control.store.schema import REVISION
from atoll.model.errors import InvalidRequest

MIGRATIONS = Path(__file__).parent / "migrations"


async def bring_up_to_date(engine: AsyncEngine) -> None:
    """Raises InvalidRequest: the database cannot be opened, or was written by a newer Atoll."""
    try:
        async with engine.connect() as connection:
            current = await connection.run_sync(_current_revision)
            if current == REVISION:
                return
    except OperationalError as error:
        raise InvalidRequest(f"the database {engine.url!r} cannot be opened: {error.orig}") from error
    # A transaction around the whole of it: half a migration is worse than none.
    async with engine.execution_options(isolation_level="SERIALIZABLE").begin() as connection:
        await connection.run_sync(_upgrade, current)


def _current_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _upgrade(connection: Connection, current: str | None) -> None:
    from alembic import command  # 0.2 s that a start on an up-to-date database does not pay
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if current is not None and current not in known:
        raise InvalidRequest(
            f"the database has schema {current!r}, which this Atoll does not know",
            hint="it was written by a newer version: upgrade Atoll or use another data directory",
        )
    attributes: dict[Any, Any] = config.attributes
    attributes["connection"] = connection
    command.upgrade(config, "head")
