"""The store: one row per sandbox, teams, keys. Every write is one statement and one commit.

Reads and writes are typed in the model's words. Decides nothing, but does enforce the lifecycle table: a transition is
an UPDATE that only matches a row whose state allows it, so two that race cannot both win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from sqlalchemy import RowMapping, delete, event, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from atoll.control.store import migrate
from atoll.control.store.schema import api_keys, sandboxes, teams
from atoll.model.errors import Conflict, InvalidRequest
from atoll.model.lifecycle import TRANSITIONS
from atoll.model.sandbox import EndReason, Limits, SandboxRecord, SandboxState

_FROM: Mapping[SandboxState, tuple[str, ...]] = {
    wanted: tuple(state.value for state, allowed in TRANSITIONS.items() if wanted in allowed) for wanted in SandboxState
}


def default_url(data_dir: Path) -> str:
    """SQLite in the data directory."""
    return f"sqlite+aiosqlite:///{data_dir / 'atoll.db'}"


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A create call's Idempotency-Key and a digest of its body."""

    key: str
    request_digest: str


class Store:
    """`async with Store(url) as store:` opens and migrates; leaving closes.

    Entering raises InvalidRequest (a URL that cannot be used, a database newer than this Atoll).
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: AsyncEngine

    async def __aenter__(self) -> Self:
        self._engine = _engine(self._url)
        try:
            await migrate.bring_up_to_date(self._engine)
        except BaseException:
            await self._engine.dispose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._engine.dispose()

    # Sandboxes

    async def add(self, record: SandboxRecord, idempotency: Idempotency | None = None) -> None:
        """Raises Conflict when the id or the idempotency key is taken."""
        row = _to_row(record)
        if idempotency is not None:
            row |= {"idempotency_key": idempotency.key, "request_digest": idempotency.request_digest}
        try:
            async with self._engine.connect() as connection:
                await connection.execute(insert(sandboxes), row)
        except IntegrityError as error:
            raise Conflict(f"sandbox {record.sandbox_id!r} or its idempotency key exists already") from error

    async def transition(self, sandbox_id: str, wanted: SandboxState, **changes: Any) -> bool:
        """Moves a sandbox to `wanted` and sets the columns in `changes`. False: unknown, or its state forbids it."""
        statement = (
            update(sandboxes)
            .where(sandboxes.c.sandbox_id == sandbox_id, sandboxes.c.state.in_(_FROM[wanted]))
            .values(state=wanted.value, **changes)
        )
        async with self._engine.connect() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def begin_kill(self, sandbox_id: str, reason: EndReason, due_by: datetime | None) -> bool:
        """To KILLING, unless `due_by` is given and its end has meanwhile been put off beyond that. False: not done."""
        statement = (
            update(sandboxes)
            .where(sandboxes.c.sandbox_id == sandbox_id, sandboxes.c.state.in_(_FROM[SandboxState.KILLING]))
            .values(state=SandboxState.KILLING.value, end_reason=reason.value)
        )
        if due_by is not None:
            statement = statement.where(sandboxes.c.end_at <= due_by)
        async with self._engine.connect() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def end(self, sandbox_id: str, reason: EndReason, at: datetime, *, free_key: bool = False) -> bool:
        """To ENDED. `free_key` lets its idempotency key be used again."""
        changes: dict[str, Any] = {"ended_at": at, "end_reason": reason.value}
        if free_key:
            changes |= {"idempotency_key": None, "request_digest": None}
        return await self.transition(sandbox_id, SandboxState.ENDED, **changes)

    async def set_end_at(self, sandbox_id: str, end_at: datetime) -> bool:
        """False: unknown or not running."""
        statement = (
            update(sandboxes)
            .where(sandboxes.c.sandbox_id == sandbox_id, sandboxes.c.state == SandboxState.RUNNING.value)
            .values(end_at=end_at)
        )
        async with self._engine.connect() as connection:
            return bool((await connection.execute(statement)).rowcount)

    async def find(self, sandbox_id: str) -> SandboxRecord | None:
        """In whatever state it is, ended too."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(sandboxes).where(sandboxes.c.sandbox_id == sandbox_id))
            row = rows.mappings().first()
        return _to_record(row) if row is not None else None

    async def find_by_idempotency_key(self, team_id: str, key: str) -> tuple[SandboxRecord, str] | None:
        """The sandbox that this key made, and the digest of the request that did it."""
        statement = select(sandboxes).where(sandboxes.c.team_id == team_id, sandboxes.c.idempotency_key == key)
        async with self._engine.connect() as connection:
            row = (await connection.execute(statement)).mappings().first()
        return (_to_record(row), row["request_digest"]) if row is not None else None

    async def in_states(self, states: Sequence[SandboxState], team_id: str | None = None) -> list[SandboxRecord]:
        """In no particular order."""
        statement = select(sandboxes).where(sandboxes.c.state.in_([state.value for state in states]))
        if team_id is not None:
            statement = statement.where(sandboxes.c.team_id == team_id)
        async with self._engine.connect() as connection:
            rows = (await connection.execute(statement)).mappings().all()
        return [_to_record(row) for row in rows]

    async def forget_ended(self, before: datetime) -> int:
        """Deletes the rows of sandboxes that ended before then; returns how many."""
        statement = delete(sandboxes).where(
            sandboxes.c.state == SandboxState.ENDED.value, sandboxes.c.ended_at < before
        )
        async with self._engine.connect() as connection:
            return (await connection.execute(statement)).rowcount

    # Teams and keys

    async def team_name(self, team_id: str) -> str | None:
        """None: there is no such team."""
        async with self._engine.connect() as connection:
            name: str | None = await connection.scalar(select(teams.c.name).where(teams.c.team_id == team_id))
        return name

    async def team_of_key(self, digest: str) -> str | None:
        """The team of the key with this SHA-256 hex digest."""
        async with self._engine.connect() as connection:
            team_id: str | None = await connection.scalar(select(api_keys.c.team_id).where(api_keys.c.digest == digest))
        return team_id

    async def add_team(self, team_id: str, name: str, at: datetime) -> None:
        """Raises Conflict if there is one of that id."""
        try:
            async with self._engine.connect() as connection:
                await connection.execute(insert(teams), {"team_id": team_id, "name": name, "created_at": at})
        except IntegrityError as error:
            raise Conflict(f"team {team_id!r} exists already") from error

    async def add_key(self, key_id: str, team_id: str, name: str, digest: str, at: datetime) -> None:
        """`digest`: the key's SHA-256 in hex. Raises Conflict: the id or the key exists, or the team does not."""
        row = {"key_id": key_id, "team_id": team_id, "name": name, "digest": digest, "created_at": at}
        try:
            async with self._engine.connect() as connection:
                await connection.execute(insert(api_keys), row)
        except IntegrityError as error:
            raise Conflict(f"API key {key_id!r} cannot be added to team {team_id!r}") from error


def _engine(url: str) -> AsyncEngine:
    """Autocommit: every write here is a single statement, and a BEGIN and a COMMIT would cost a thread hop each."""
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return create_async_engine(parsed, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        # One connection: SQLite has one writer, and waiting in our queue beats SQLite's sleeping on a lock.
        engine = create_async_engine(
            parsed, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=0, pool_reset_on_return=None
        )
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise InvalidRequest(f"ATOLL_DATABASE_URL cannot be used: {error}") from error
    event.listen(engine.sync_engine, "connect", _set_pragmas)
    return engine


def _set_pragmas(connection: Any, _record: Any) -> None:
    """NORMAL in WAL mode: a crash of the server loses nothing, a power cut at most the last commits, never the file."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _to_row(record: SandboxRecord) -> dict[str, Any]:
    return {
        "sandbox_id": record.sandbox_id,
        "team_id": record.team_id,
        "template_id": record.template_id,
        "template_alias": record.template_alias,
        "node_id": record.node_id,
        "tier": record.tier,
        "state": record.state.value,
        "started_at": record.started_at,
        "end_at": record.end_at,
        "cpu_count": record.limits.cpu_count,
        "memory_mib": record.limits.memory_mib,
        "disk_mib": record.limits.disk_mib,
        "pids": record.limits.pids,
        "metadata": dict(record.metadata),
        "env_vars": dict(record.env_vars),
        "envd_access_token": record.envd_access_token,
        "traffic_access_token": record.traffic_access_token,
        "allow_internet_access": record.allow_internet_access,
        "auto_pause": record.auto_pause,
        "ended_at": record.ended_at,
        "end_reason": record.end_reason.value if record.end_reason is not None else None,
    }


def _to_record(row: RowMapping) -> SandboxRecord:
    return SandboxRecord(
        sandbox_id=row["sandbox_id"],
        team_id=row["team_id"],
        template_id=row["template_id"],
        template_alias=row["template_alias"],
        node_id=row["node_id"],
        tier=row["tier"],
        state=SandboxState(row["state"]),
        started_at=row["started_at"],
        end_at=row["end_at"],
        limits=Limits(row["cpu_count"], row["memory_mib"], row["disk_mib"], row["pids"]),
        metadata=MappingProxyType(row["metadata"]),
        env_vars=MappingProxyType(row["env_vars"]),
        envd_access_token=row["envd_access_token"],
        traffic_access_token=row["traffic_access_token"],
        allow_internet_access=row["allow_internet_access"],
        auto_pause=row["auto_pause"],
        ended_at=row["ended_at"],
        end_reason=EndReason(row["end_reason"]) if row["end_reason"] is not None else None,
    )
