"""The least that must work, in the tier that this machine's server chooses by itself. `make quick` runs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from e2b import Sandbox

from support.tiers import SERVER_ENVIRON


def test_a_sandbox_of_the_best_tier_runs_a_command_and_keeps_a_file(make_server: Callable[..., Any]) -> None:
    server = make_server(options=["--end-sandboxes"], environ=SERVER_ENVIRON["gvisor"])
    options = {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url}
    with Sandbox.create(timeout=60, **options) as sandbox:
        sandbox.files.write("word", "kept")
        assert sandbox.commands.run("cat word; id -un").stdout == "keptuser\n"
    assert not sandbox.is_running()
