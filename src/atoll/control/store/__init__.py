"""What Atoll remembers: SQLAlchemy 2, SQLite by default, PostgreSQL by URL, Alembic migrations run at start."""

from atoll.control.store.database import default_url
from atoll.control.store.keys import ApiKey, KeyTables, Team
from atoll.control.store.store import Idempotency, Store

__all__ = ["ApiKey", "Idempotency", "KeyTables", "Store", "Team", "default_url"]
