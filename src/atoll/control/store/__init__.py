"""What Atoll remembers: SQLAlchemy 2, SQLite by default, PostgreSQL by URL, Alembic migrations run at start."""

from atoll.control.store.database import default_url
from atoll.control.store.store import Idempotency, Store

__all__ = ["Idempotency", "Store", "default_url"]
