"""Databases as a new server leaves them when it has opened one: the migrations run once, and the rest are copies."""

from __future__ import annotations

import asyncio
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from atoll.control.store import Store, default_url
from support.postgres import Postgres


def migrated_sqlite(data_dir: Path) -> str:
    """The URL of the database in a data directory; one that is there already stays as it is."""
    path = data_dir / "atoll.db"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(0o600)
        path.write_bytes(_sqlite())
    return default_url(data_dir)


@cache
def _sqlite() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        migrate(default_url(Path(place)))
        return (Path(place) / "atoll.db").read_bytes()


@cache
def _postgres_template(postgres: Postgres) -> str:
    url = postgres.new_database()
    migrate(url)
    return url.rpartition("/")[2]


def migrated_postgres(postgres: Postgres) -> str:
    """The URL of a new database."""
    return postgres.new_database(template=_postgres_template(postgres))


def migrate(url: str) -> None:
    """Brings a database up to date, as a server does that starts. Also where a loop runs."""

    async def opened() -> None:
        async with Store(url):
            pass

    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, opened()).result()
