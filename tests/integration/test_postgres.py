"""A server whose database is PostgreSQL, through the real SDK."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from e2b import Sandbox
from e2b.exceptions import NotFoundException

from support.postgres import Postgres
from support.server import ServerProcess
from support.tiers import SERVER_ENVIRON


@pytest.mark.one_tier("the database knows nothing of tiers")
def test_sandboxes_are_kept_in_postgres_and_outlive_a_killed_server(
    tier: str, postgres: Postgres, make_server: Callable[..., ServerProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database()
    environ = {**SERVER_ENVIRON[tier], "ATOLL_DATABASE_URL": url}
    options = ["--isolation", tier, "--keep-sandboxes"]
    server = make_server(options=options, environ=environ)
    for variable, value in server.environ.items():
        monkeypatch.setenv(variable, value)
    sandbox = Sandbox.create(timeout=600, metadata={"who": "värde 🦆"})
    sandbox.files.write("note", "kept")
    rows = postgres.sql("SELECT sandbox_id, state FROM sandboxes", url.rpartition("/")[2])
    assert rows == f"{sandbox.sandbox_id}|running"
    sandbox.pause()
    server.stop(signal.SIGKILL)

    port = int(server.url.rpartition(":")[2])
    make_server(server.data_dir, options=options, environ=environ, port=port)
    (found,) = Sandbox.list().next_items()
    assert (found.sandbox_id, found.metadata) == (sandbox.sandbox_id, {"who": "värde 🦆"})
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("note") == "kept"
    assert again.kill()
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)
