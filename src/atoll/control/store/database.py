"""Runs a piece of synchronous SQLAlchemy work on the database without holding up the event loop.

Two ways. SQLite: one connection in one thread of its own, so that a statement costs one hop there and back (the async
driver takes four, and a create is mostly hops); SQLite has one writer anyhow, and waiting in our queue beats its
sleeping on a lock. Anything else: the URL's async driver and a pool.

Autocommit in both: every write of the store is a single statement. Once done it is on the machine's disk, unless it is
`volatile`: what a power cut ends anyway (that a sandbox runs) waits for no disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Executable, RowMapping, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool, StaticPool

from atoll.control.store import migrate
from atoll.model.errors import InvalidRequest, StorageFull
from atoll.model.sealing import Seal
from atoll.model.tasks import OwnedTasks

T = TypeVar("T")

_DISK_FULL = "53100"
"""PostgreSQL's code for it."""
_LEAST_ROOM = 1 << 20
_CLAIM = text("SELECT pg_try_advisory_lock(1635020652)")
"""PostgreSQL's lock of a control plane ("atol" in ASCII): it ends with the connection, so with a killed server too."""
_CLAIM_WITHIN_S, _CLAIM_PAUSE_S = 10.0, 0.2
"""For the connection of a server that has just ended."""


def default_url(data_dir: Path) -> str:
    """SQLite in the data directory."""
    return f"sqlite:///{data_dir / 'atoll.db'}"


class Database(ABC):
    """An open, migrated database. `in_order`: whether what is begun earlier is done earlier."""

    in_order = False

    @abstractmethod
    async def run(self, work: Callable[[Connection], T], *, volatile: bool | None = False) -> T:
        """The result of `work` on a connection. Once begun it is carried through, even if the caller is cancelled.

        `volatile`: a power cut may undo what it writes; None: it writes nothing.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Idempotent."""

    @abstractmethod
    async def claim(self) -> None:
        """No other control plane uses it from now on until it is closed. Raises InvalidRequest: one does."""

    async def write(
        self, statement: Executable, values: Mapping[str, Any] | None = None, *, volatile: bool = False
    ) -> int:
        """How many rows it changed. Raises IntegrityError."""
        return await self.run(lambda connection: connection.execute(statement, values).rowcount, volatile=volatile)

    async def read(
        self, statement: Executable, values: Mapping[str, Any] | None = None, *, volatile: bool | None = None
    ) -> Sequence[RowMapping]:
        """All its rows. `volatile`: of one that writes too."""
        return await self.run(
            lambda connection: connection.execute(statement, values).mappings().all(), volatile=volatile
        )

    @abstractmethod
    async def settle(self) -> None:
        """What was written before, volatile or not, is on the machine's disk when this returns."""

    async def survey(self, statement: Executable) -> Sequence[RowMapping]:
        """As `read`, for what looks at very many rows: no write waits for it."""
        return await self.read(statement)


async def open_database(url: str, seal: Seal, *, alone: bool = False) -> Database:
    """Opens and migrates. `alone`: for the one control plane that may use it, until it closes.

    Raises InvalidRequest: the URL cannot be used, a newer Atoll wrote the database, or another server uses it.
    """
    try:
        parsed = make_url(url)
        database = _Threaded(parsed) if parsed.get_backend_name() == "sqlite" else _Asynchronous(parsed)
    except (ArgumentError, NoSuchModuleError, ImportError, OSError) as error:
        hint = "see ATOLL_DATABASE_URL; PostgreSQL needs the extra atoll[postgres]"
        raise InvalidRequest(f"the database cannot be used: {error}", hint=hint) from error
    try:
        await database.run(lambda connection: migrate.bring_up_to_date(connection, seal))
        if alone:
            await database.claim()
    except (DBAPIError, OSError) as error:
        await database.aclose()
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise InvalidRequest(f"the database {parsed.render_as_string()} cannot be used: {cause}") from error
    except BaseException:
        await database.aclose()
        raise
    return database


class _RoomNeeded:
    """A block in which a driver's error that means "no room" becomes StorageFull. `place`: where SQLite writes."""

    def __init__(self, place: Path | None) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, DBAPIError) and self._means_full(error.orig):
            raise StorageFull(
                f"the server's database has no room: {error.orig}",
                hint="nothing was changed, and what was answered before is kept; make room on its disk and try again",
            ) from error

    def _means_full(self, original: object) -> bool:
        code = getattr(original, "sqlite_errorcode", None)
        if code is None:
            return getattr(original, "sqlstate", None) == _DISK_FULL
        if code & 0xFF == sqlite3.SQLITE_IOERR and self._place is not None:  # its shared memory could not grow
            there = os.statvfs(self._place)
            return there.f_bavail * there.f_frsize < _LEAST_ROOM or there.f_favail == 0 < there.f_files
        return bool(code & 0xFF == sqlite3.SQLITE_FULL)


class _Worker:
    """One thread that works off what it is given, in order: half the cost of an executor's hop, of which a create pays
    several."""

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._closed = False
        self._thread.start()

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Its outcome. What was begun is carried through, even if nobody waits any more."""
        if self._closed:
            raise RuntimeError("the database is closed")
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put((work, outcome))
        return outcome

    def close(self) -> None:
        """Waits for what was given before. Idempotent."""
        self._closed = True
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, outcome = job
            try:
                settle: Callable[[], None] = functools.partial(_succeed, outcome, work())
            except BaseException as error:
                settle = functools.partial(_fail, outcome, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                outcome.get_loop().call_soon_threadsafe(settle)
            del job, work, outcome, settle  # nothing is kept alive until the next job


def _succeed(outcome: asyncio.Future[T], result: T) -> None:
    if not outcome.done():
        outcome.set_result(result)


def _fail(outcome: asyncio.Future[Any], error: BaseException) -> None:
    if not outcome.done():
        outcome.set_exception(error)


class _Threaded(Database):
    in_order = True

    def __init__(self, url: URL) -> None:
        _make_private(url.database)
        self._engine: Engine = create_engine(
            url.set(drivername="sqlite"),
            isolation_level="AUTOCOMMIT",
            poolclass=StaticPool,
            pool_reset_on_return=None,
            connect_args={"check_same_thread": False},
        )
        self._in_memory = url.database in (None, "", ":memory:")
        self._room_needed = _RoomNeeded(None if self._in_memory else Path(str(url.database)).parent)
        # For surveys, a connection each: in WAL mode a reader is in nobody's way.
        self._aside: Engine = create_engine(
            url.set(drivername="sqlite"), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        for engine in (self._engine, self._aside):
            event.listen(engine, "connect", _set_pragmas)
        self._worker = _Worker("atoll-store")
        self._connection: Connection | None = None
        self._volatile = False

    async def run(self, work: Callable[[Connection], T], *, volatile: bool | None = False) -> T:
        return await self._worker.submit(functools.partial(self._do, work, volatile))

    async def settle(self) -> None:
        # A commit of nothing: with it everything before it in the log is synced.
        await self.run(lambda connection: connection.exec_driver_sql("PRAGMA user_version = 1"))

    async def survey(self, statement: Executable) -> Sequence[RowMapping]:
        if self._in_memory:
            return await self.read(statement)
        return await asyncio.to_thread(self._look, statement)

    def _look(self, statement: Executable) -> Sequence[RowMapping]:
        with self._aside.connect() as connection:
            return connection.execute(statement).mappings().all()

    def _do(self, work: Callable[[Connection], T], volatile: bool | None) -> T:
        if self._connection is None:
            self._connection = self._engine.connect()
        if volatile not in (None, self._volatile):
            self._connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if volatile else 'FULL'}")
            self._volatile = bool(volatile)
        with self._room_needed:
            return work(self._connection)

    async def claim(self) -> None:
        """Its file lies in a data directory, which is one server's."""

    async def aclose(self) -> None:
        def close() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self._engine.dispose()

        await asyncio.to_thread(self._worker.close)
        close()


class _Asynchronous(Database):
    def __init__(self, url: URL) -> None:
        from sqlalchemy.ext.asyncio import (  # with it the whole ORM, a tenth of a start
            AsyncConnection,
            AsyncEngine,
            create_async_engine,
        )

        self._room_needed = _RoomNeeded(None)
        self._engine: AsyncEngine = create_async_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        self._claim: AsyncConnection | None = None
        self._running = OwnedTasks()

    async def claim(self) -> None:
        self._claim = connection = await self._engine.connect()
        until = asyncio.get_running_loop().time() + _CLAIM_WITHIN_S
        while not await connection.scalar(_CLAIM):
            if asyncio.get_running_loop().time() > until:
                raise InvalidRequest(
                    "another server uses this database",
                    hint="stop that one first, or give this one a database of its own (ATOLL_DATABASE_URL)",
                )
            await asyncio.sleep(_CLAIM_PAUSE_S)

    async def run(self, work: Callable[[Connection], T], *, volatile: bool | None = False) -> T:
        return await asyncio.shield(self._running.start(self._do(work)))

    async def settle(self) -> None:
        """PostgreSQL's commits are on its disk."""

    async def _do(self, work: Callable[[Connection], T]) -> T:
        with self._room_needed:
            async with self._engine.connect() as connection:
                return await connection.run_sync(work)

    async def aclose(self) -> None:
        await self._running.wait()
        if self._claim is not None:
            await self._claim.invalidate()  # not put back: the lock is the connection's
            await self._claim.close()
        await self._engine.dispose()


def _make_private(path: str | None) -> None:
    """The file before SQLite makes it: it holds tokens, and SQLite's own files beside it take its mode."""
    if path and path != ":memory:" and not path.startswith("file:"):
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _set_pragmas(connection: Any, _record: Any) -> None:
    """FULL in WAL mode: not even a power cut loses what was answered. NORMAL (`volatile`) may lose the last commits in
    one, never the file, and nothing in a crash of the server."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
