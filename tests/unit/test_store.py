"""The store: rows come back as they went in, transitions obey the table in a race too, migrations match the code."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Inspector, create_engine, inspect
from sqlalchemy.ext.asyncio import create_async_engine

from atoll.control.access.auth import DEFAULT_TEAM_ID
from atoll.control.store import ApiKey, Idempotency, Store, Team, database, default_url
from atoll.control.store.migrate import MIGRATIONS
from atoll.control.store.schema import REVISION, metadata
from atoll.model.errors import Conflict, InvalidRequest
from atoll.model.lifecycle import TRANSITIONS
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import EndReason, Limits, SandboxRecord, SandboxState
from support.postgres import Postgres

NOW = datetime(2030, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
S = SandboxState


def _record(sandbox_id: str = "i0001", state: SandboxState = S.CREATING, **fields) -> SandboxRecord:
    values = {
        "team_id": DEFAULT_TEAM_ID,
        "template_id": "tid",
        "template_alias": "base",
        "node_id": "local",
        "tier": "",
        "started_at": NOW,
        "end_at": NOW + timedelta(seconds=300),
        "limits": Limits(3, 512, 1000, 99),
        "metadata": {"k": "värde 🦆"},
        "env_vars": {"A": "b"},
        "envd_access_token": "e",
        "traffic_access_token": "t",
        "network": NetworkPolicy.checked(
            allow_internet=False, allow_out=["a.test"], rules={"a.test": [{"Authorization": "s"}]}
        ),
        "auto_pause": True,
    }
    return SandboxRecord(sandbox_id=sandbox_id, state=state, **(values | fields))


@pytest.fixture
async def store(database_url: str):
    async with Store(database_url) as opened:
        yield opened


async def test_a_row_comes_back_as_it_went_in(store: Store) -> None:
    await store.add(_record())
    assert await store.find("i0001") == _record()
    assert await store.find("i0002") is None


async def test_times_are_utc_whatever_zone_they_came_in(store: Store) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    await store.add(_record(started_at=elsewhere))
    found = await store.find("i0001")
    assert found is not None
    assert found.started_at == NOW
    assert found.started_at.tzinfo is UTC


async def test_what_was_moved_since_is_not_changed_by_who_had_it_before(store: Store) -> None:
    record = _record(state=S.RUNNING)
    await store.add(record)
    assert await store.move(record, "b", None)
    assert not await store.move(record, "c", None), "of two that would move it one does"
    assert not await store.transition("i0001", S.RUNNING, of_generation=record.generation)
    assert await store.transition("i0001", S.RUNNING, of_generation=record.generation + 1)
    found = await store.find("i0001")
    assert found is not None
    assert (found.node_id, found.generation, found.state) == ("b", record.generation + 1, S.RUNNING)


async def test_a_copy_of_an_earlier_pause_is_none_of_a_later_one(store: Store) -> None:
    record = _record(state=S.PAUSED)
    await store.add(record)
    assert await store.set_kept_image(record, "first")
    await store.transition("i0001", S.RESUMING)
    await store.transition("i0001", S.RUNNING, kept_image=None, started_at=NOW + timedelta(seconds=1))
    assert not await store.set_kept_image(record, "first"), "it runs"
    await store.transition("i0001", S.PAUSING)
    await store.transition("i0001", S.PAUSED)
    assert not await store.set_kept_image(record, "first"), "its copy was long on its way"
    found = await store.find("i0001")
    assert found is not None
    assert found.kept_image is None
    assert await store.set_kept_image(found, "second")


async def test_everything_survives_closing_and_opening(database_url: str) -> None:
    async with Store(database_url) as store:
        await store.add(_record())
    async with Store(database_url) as store:
        assert await store.find("i0001") == _record()
        assert await store.keys.team_name(DEFAULT_TEAM_ID) == "default"


async def test_what_was_written_survives_a_killed_process(database_url: str) -> None:
    child = f"""
import asyncio, os, signal, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from test_store import Store, _record
async def main():
    store = await Store({database_url!r}).__aenter__()
    await store.add(_record())
    await store.running("i0001", "fake")
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", child], check=False, timeout=60)
    async with Store(database_url) as store:
        found = await store.find("i0001")
        assert found is not None
        assert (found.state, found.tier) == (S.RUNNING, "fake")


async def test_the_database_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    async with Store(default_url(tmp_path / "new")) as store:
        await store.add(_record())
        for file in (tmp_path / "new").iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


async def test_an_id_is_used_once(store: Store) -> None:
    await store.add(_record())
    with pytest.raises(Conflict):
        await store.add(_record())


async def test_only_transitions_of_the_table_are_made(store: Store) -> None:
    for state, wanted in itertools.product(S, S):
        sandbox_id = f"{state}2{wanted}"
        await store.add(_record(sandbox_id, state))
        allowed = wanted in TRANSITIONS[state]
        assert await store.transition(sandbox_id, wanted) is allowed, (state, wanted)
        found = await store.find(sandbox_id)
        assert found is not None
        assert found.state is (wanted if allowed else state)


async def test_of_two_kills_that_race_one_wins(store: Store) -> None:
    await store.add(_record(state=S.RUNNING))
    outcomes = await asyncio.gather(*(store.begin_kill("i0001", EndReason.KILLED, None) for _ in range(10)))
    assert [one.end_reason for one in outcomes if one is not None] == [EndReason.KILLED]


async def test_a_timeout_that_was_put_off_does_not_kill(store: Store) -> None:
    await store.add(_record(state=S.RUNNING, end_at=NOW))
    assert await store.set_end_at("i0001", NOW + timedelta(seconds=10))
    assert not await store.begin_kill("i0001", EndReason.TIMEOUT, due_by=NOW)
    assert await store.begin_kill("i0001", EndReason.TIMEOUT, due_by=NOW + timedelta(seconds=10))


async def test_the_end_of_one_that_does_not_run_cannot_be_moved(store: Store) -> None:
    await store.add(_record(state=S.KILLING))
    assert not await store.set_end_at("i0001", NOW)
    assert not await store.set_end_at("unknown", NOW)


async def test_running_is_only_reached_from_creating(store: Store) -> None:
    await store.add(_record())
    assert await store.end("i0001", EndReason.DIED, NOW)
    assert not await store.running("i0001", "fake")


async def test_an_idempotency_key_is_used_once_per_team_until_it_is_freed(store: Store) -> None:
    key = Idempotency("k", "digest")
    await store.keys.add_team(Team("other", "Other", NOW))
    await store.add(_record("i0001"), key)
    await store.add(_record("i0002", team_id="other"), key)
    with pytest.raises(Conflict):
        await store.add(_record("i0003"), key)
    assert await store.find_by_idempotency_key(DEFAULT_TEAM_ID, "k") == (_record("i0001"), "digest")
    assert await store.find_by_idempotency_key(DEFAULT_TEAM_ID, "other key") is None
    await store.end("i0001", EndReason.CREATE_FAILED, NOW, free_key=True)
    await store.add(_record("i0003"), key)


async def test_lists_are_by_state_and_team(store: Store) -> None:
    await store.keys.add_team(Team("other", "Other", NOW))
    await store.add(_record("i0001", S.RUNNING))
    await store.add(_record("i0002", S.PAUSED))
    await store.add(_record("i0003", S.ENDED))
    await store.add(_record("i0004", S.RUNNING, team_id="other"))
    live = await store.in_states([S.RUNNING, S.PAUSED])
    assert {record.sandbox_id for record in live} == {"i0001", "i0002", "i0004"}
    mine = await store.in_states([S.RUNNING], DEFAULT_TEAM_ID)
    assert [record.sandbox_id for record in mine] == ["i0001"]


async def test_a_list_for_showing_has_all_but_what_is_secret(store: Store) -> None:
    secret = {"env_vars": {"A": "b"}, "traffic_access_token": "t", "network": NetworkPolicy(deny_out=("1.1.1.1",))}
    record = _record("i0001", S.RUNNING, **secret, auto_pause=True, generation=3)
    await store.add(record)
    bare = replace(record, env_vars={}, envd_access_token=None, traffic_access_token=None, network=NetworkPolicy())
    assert await store.in_states([S.RUNNING]) == [record]
    assert await store.listed([S.RUNNING], DEFAULT_TEAM_ID) == [bare]
    assert await store.listed([S.PAUSED], DEFAULT_TEAM_ID) == await store.listed([S.RUNNING], "other") == []


async def test_ended_rows_are_forgotten_after_a_while_and_live_ones_never(store: Store) -> None:
    await store.add(_record("i0001", S.RUNNING))
    await store.add(_record("i0002", S.RUNNING))
    await store.end("i0002", EndReason.KILLED, NOW)
    assert await store.forget_ended(NOW) == 0
    assert await store.forget_ended(NOW + timedelta(seconds=1)) == 1
    assert await store.find("i0001") is not None
    assert await store.find("i0002") is None


async def test_keys_are_found_by_digest_and_need_a_team(store: Store) -> None:
    await store.keys.add_team(Team("t2", "Two", NOW))
    with pytest.raises(Conflict):
        await store.keys.add_team(Team("t2", "again", NOW))
    await store.keys.add(ApiKey("k1", "t2", "name", NOW), "d" * 64)
    assert await store.keys.team_of("d" * 64) == "t2"
    assert await store.keys.team_of("e" * 64) is None
    with pytest.raises(Conflict):
        await store.keys.add(ApiKey("k2", "no such team", "name", NOW), "f" * 64)
    assert await store.keys.team_name("none") is None


async def test_a_hundred_writers_at_once_all_get_through(store: Store) -> None:
    await asyncio.gather(*(store.add(_record(f"i{n:04}")) for n in range(100)))
    await asyncio.gather(*(store.running(f"i{n:04}", "fake") for n in range(100)))
    assert len(await store.in_states([S.RUNNING])) == 100


# Migrations


async def test_the_migrations_make_the_tables_that_the_code_expects(
    database_url: str, request: pytest.FixtureRequest
) -> None:
    empty = "sqlite://"
    if database_url.startswith("postgresql"):
        empty = request.getfixturevalue("postgres").new_database()
    _compare(await _tables(database_url), await _tables(empty, metadata.create_all))


async def _tables(url: str, first: Callable[[Connection], None] = lambda _: None) -> _Tables:
    """What is in a database after `first`."""
    if url.startswith("sqlite"):
        with create_engine(url).begin() as connection:
            first(connection)
            return _Tables(inspect(connection))
    engine = create_async_engine(url)
    async with engine.begin() as asynchronous:
        await asynchronous.run_sync(first)
        found = await asynchronous.run_sync(lambda connection: _Tables(inspect(connection)))
    await engine.dispose()
    return found


class _Tables:
    """An Inspector's answers, all read: its connection need not be open any more."""

    def __init__(self, inspector: Inspector) -> None:
        self._names = inspector.get_table_names()
        kinds = ("get_columns", "get_indexes", "get_foreign_keys")
        self._found = {(kind, name): getattr(inspector, kind)(name) for kind in kinds for name in self._names}

    def get_table_names(self) -> list[str]:
        return self._names

    def __getattr__(self, kind: str) -> Callable[[str], Any]:
        return lambda name: self._found[kind, name]


def _compare(migrated: _Tables, expected: _Tables) -> None:
    assert set(migrated.get_table_names()) - {"alembic_version"} == set(expected.get_table_names())
    for table in expected.get_table_names():
        columns = [
            [(c["name"], str(c["type"]), c["nullable"]) for c in one.get_columns(table)] for one in (migrated, expected)
        ]
        assert columns[0] == columns[1]
        indexes = [{(i["name"], tuple(i["column_names"]), i["unique"]) for i in one.get_indexes(table)}
                   for one in (migrated, expected)]  # fmt: skip
        assert indexes[0] == indexes[1]
        foreign = [sorted(str(f["constrained_columns"]) for f in one.get_foreign_keys(table))
                   for one in (migrated, expected)]  # fmt: skip
        assert foreign[0] == foreign[1]


def test_the_revision_that_the_code_knows_is_the_newest_migration() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_heads() == [REVISION]


def test_a_start_on_an_up_to_date_database_does_not_load_alembic(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from atoll.control.store import Store, default_url
async def main():
    async with Store(default_url(Path({str(tmp_path)!r}))):
        pass
asyncio.run(main())
print("alembic" in sys.modules)
"""
    run = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60) for _ in range(2)]
    assert [one.stdout.strip() for one in run] == ["True", "False"], run


async def test_a_database_of_a_newer_atoll_is_refused_and_left_alone(tmp_path: Path) -> None:
    async with Store(default_url(tmp_path)) as store:
        await store.add(_record())
    with sqlite3.connect(tmp_path / "atoll.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InvalidRequest, match="newer version"):
        await Store(default_url(tmp_path)).__aenter__()
    with sqlite3.connect(tmp_path / "atoll.db") as connection:
        assert connection.execute("SELECT count(*) FROM sandboxes").fetchone() == (1,)


async def test_servers_that_start_at_once_migrate_an_empty_database_once(postgres: Postgres) -> None:
    url = postgres.new_database()
    stores = await asyncio.gather(*(Store(url).__aenter__() for _ in range(4)))
    assert [await one.keys.team_name(DEFAULT_TEAM_ID) for one in stores] == ["default"] * 4
    for one in stores:
        await one.__aexit__(None, None, None)


async def test_one_control_plane_at_a_time_uses_a_database(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgres.new_database()
    monkeypatch.setattr(database, "_CLAIM_WITHIN_S", 0.5)
    async with Store(url, alone=True):
        with pytest.raises(InvalidRequest, match="another server uses"):
            await Store(url, alone=True).__aenter__()
        async with Store(url) as beside:  # as `atoll team` does
            assert await beside.keys.teams()
    async with Store(url, alone=True) as next_one:
        assert await next_one.keys.teams()


async def test_a_failed_migration_leaves_nothing_behind(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "atoll.db") as connection:
        connection.execute("CREATE TABLE sandboxes (x)")  # in the way
    with pytest.raises(InvalidRequest):
        await Store(default_url(tmp_path)).__aenter__()
    with sqlite3.connect(tmp_path / "atoll.db") as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names == {"sandboxes"}


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "sqlite:////proc/none/atoll.db",
        "martian://x",
        "postgresql+none://h/d",
        "postgresql+asyncpg://x@127.0.0.1:1/d",
    ],
)
async def test_a_url_that_cannot_be_used_is_told_so(url: str) -> None:
    with pytest.raises(InvalidRequest):
        await Store(url).__aenter__()


async def test_a_file_that_is_no_database_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "atoll.db").write_bytes(b"hello " * 1000)
    with pytest.raises(InvalidRequest, match="cannot be used"):
        await Store(default_url(tmp_path)).__aenter__()
