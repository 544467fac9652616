"""Nothing that somebody told the server in confidence lies on its disk in clear: database, journal, records, logs.

What a sandbox itself wrote (its disk) and what was in its memory (a paused one's, a snapshot's in gVisor) is not the
server's to seal; the threat model says so.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from e2b import Sandbox, Secret

from atoll.control.store import Store, Team, default_url
from atoll.model.events import EventType, Webhook
from atoll.model.sealing import Seal, kept_key, new_key
from support.server import ServerProcess

_OF_SANDBOXES = ("disk.img", "*.img", "memory", "checkpoint*", "pages*")
"""Names of what holds a sandbox's own bytes."""


@pytest.mark.timeout(120)
def test_the_data_directory_holds_no_secret_in_clear(server: ServerProcess) -> None:
    names = ("env", "webhook", "secret", "rule", "changed")
    canary = {what: f"canary-{what}-{secrets.token_hex(12)}" for what in names}
    key = {"X-API-Key": server.api_key}
    hook = {"name": "w", "url": "https://example.com/", "events": ["sandbox.lifecycle.created"]}
    made = httpx.post(f"{server.url}/events/webhooks", json={**hook, "signatureSecret": canary["webhook"]}, headers=key)
    assert made.status_code in (200, 201), made.text
    Secret.create("at-rest", canary["secret"])
    rules = {"api.test": [{"transform": {"headers": {"X": canary["rule"], "Y": Secret.fill("at-rest")}}}]}
    network = {"allow_public_traffic": False, "rules": rules}
    sandbox = Sandbox.create(envs={"CANARY": canary["env"]}, network=network, timeout=300)  # type: ignore[arg-type]
    snapshot = None
    try:
        assert sandbox.commands.run("echo $CANARY").stdout.strip() == canary["env"], "the control"
        canary["token"], canary["traffic"] = sandbox._envd_access_token or "", sandbox.traffic_access_token or ""
        assert min(map(len, canary.values())) > 20
        rules["api.test"][0]["transform"]["headers"]["X"] = canary["changed"]
        sandbox.update_network({"rules": rules})  # type: ignore[typeddict-item]
        snapshot = sandbox.create_snapshot(mode="filesystem")
        child = Sandbox.create(snapshot.snapshot_id, timeout=60)
        assert child.commands.run("echo $CANARY").stdout.strip() == canary["env"], "a snapshot has its environment"
        child.kill()
        sandbox.pause(keep_memory=False)
        # Both commands printed the environment: what programs print is kept as they print it.
        said = canary.pop("env") + "\n"
        found = _holding(server.data_dir, canary.values())
        found += [where for where in _holding(server.data_dir, [said.strip()]) if "logs" not in where.split("/")]
        assert found == []
        assert _holding(server.data_dir, [sandbox.sandbox_id]), "the control: it is looked at"
        sandbox.connect()
        assert sandbox.commands.run("echo $CANARY").stdout == said
    finally:
        sandbox.kill()
        Secret.destroy("at-rest")
        httpx.delete(f"{server.url}/events/webhooks/{made.json()['id']}", headers=key)
        if snapshot is not None:
            Sandbox.delete_snapshot(snapshot.snapshot_id)


def _holding(directory: Path, words: Iterable[str]) -> list[str]:
    wanted = [word.encode() for word in words]
    return [str(path.relative_to(directory)) for path in _files(directory) if any(map(path.read_bytes().count, wanted))]


def _files(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        mine = not any(path.match(name) for name in _OF_SANDBOXES) and "upper" not in path.parts
        if mine and path.is_file() and not path.is_symlink():
            yield path


async def test_an_earlier_database_is_sealed_as_it_is_opened(tmp_path: Path) -> None:
    secret = "lies there in clear"
    hook = Webhook("w", "t", "n", "https://x/", True, (EventType.CREATED,), datetime.now(UTC), secret)
    async with Store(default_url(tmp_path)) as store:
        await store.keys.add_team(Team("t", "t", hook.created_at))
        await store.events.add_webhook(hook)
    with closing(sqlite3.connect(tmp_path / "atoll.db", isolation_level=None)) as database:
        for table in ("volumes", "nodes"):  # later revisions
            database.execute(f"DROP TABLE {table}")
        for column in ("volumes", "generation", "kept_image"):
            database.execute(f"ALTER TABLE sandboxes DROP COLUMN {column}")
        database.execute("UPDATE alembic_version SET version_num = '0008'")
    assert _holding(tmp_path, [hook.secret]), "the control"
    seal = Seal(kept_key(tmp_path / "key"))
    async with Store(default_url(tmp_path), seal) as store:
        assert await store.events.webhooks() == [hook]
    assert _holding(tmp_path, [hook.secret]) == []
    async with Store(default_url(tmp_path), Seal(new_key())) as store:
        (found,) = await store.events.webhooks()
        assert found.secret != hook.secret, "another key opens nothing"
