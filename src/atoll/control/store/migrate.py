"""Brings a database to the schema of this Atoll as it is opened. Alembic is loaded only if there is work for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text

from atoll.control.store.schema import REVISION
from atoll.model.errors import InvalidRequest
from atoll.model.sealing import Seal

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x61746F6C6C
"""The advisory lock of a migration: "atoll" in ASCII; nothing else takes it."""


def bring_up_to_date(connection: Connection, seal: Seal) -> None:
    """In one transaction: half a migration is worse than none. `seal`: in which what lies there in clear is put.

    Raises InvalidRequest: a newer Atoll wrote it.
    """
    if _current_revision(connection) == REVISION:
        return
    connection.exec_driver_sql("BEGIN")
    try:
        if connection.dialect.name == "postgresql":  # servers that start at once: the first does it
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
        if (current := _current_revision(connection)) != REVISION:
            _upgrade(connection, current, seal)
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _current_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _upgrade(connection: Connection, current: str | None, seal: Seal) -> None:
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
    attributes["seal"] = seal
    command.upgrade(config, "head")
