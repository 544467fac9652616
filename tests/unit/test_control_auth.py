"""API keys: where they come from, how they are kept, who they belong to."""

from __future__ import annotations

import asyncio
import re
import stat
import threading
from datetime import datetime
from pathlib import Path

import pytest

from atoll.control.access.auth import (
    API_KEY_FILE,
    DEFAULT_TEAM_ID,
    Authenticator,
    Caller,
    configured_keys,
    digest_of,
    new_key,
)
from atoll.model.errors import InvalidRequest, Unauthorized


class _Keys:
    def __init__(self, **teams: str) -> None:
        self.teams = teams
        self.uses: list[str] = []

    async def team_of(self, digest: str) -> str | None:
        return self.teams.get(digest)

    async def used(self, digest: str, at: datetime) -> None:
        self.uses.append(digest)


async def test_a_configured_key_belongs_to_the_default_team() -> None:
    auth = Authenticator(["one", "two"], _Keys())
    for key in ("one", "two"):
        assert await auth.authenticate(key) == Caller(DEFAULT_TEAM_ID, key)


async def test_a_stored_key_belongs_to_its_team() -> None:
    auth = Authenticator(["one"], _Keys(**{digest_of("other"): "team2"}))
    assert (await auth.authenticate("other")).team_id == "team2"


async def test_the_use_of_a_stored_key_is_noted_but_not_at_every_request() -> None:
    keys = _Keys(**{digest_of("other"): "team2"})
    auth = Authenticator(["one"], keys)
    for key in ("one", "other", "other"):
        await auth.authenticate(key)
    assert keys.uses == [digest_of("other")]


@pytest.mark.parametrize("key", [None, "", "on", "onee", "ONE", "one ", digest_of("one"), "ö\udcff"])
async def test_anything_else_is_nobody(key: str | None) -> None:
    with pytest.raises(Unauthorized):
        await Authenticator(["one"], _Keys()).authenticate(key)


async def test_no_key_at_all_says_where_to_get_one() -> None:
    with pytest.raises(Unauthorized, match="atoll env"):
        await Authenticator([], _Keys()).authenticate(None)


def test_the_authenticator_keeps_no_key_in_the_clear() -> None:
    auth = Authenticator(["very-secret"], _Keys())
    assert "very-secret" not in repr(vars(auth))


def test_keys_from_the_environment_are_used_and_no_file_is_written(tmp_path: Path) -> None:
    assert configured_keys(("a", "b"), tmp_path) == ("a", "b")
    assert list(tmp_path.iterdir()) == []


def test_without_any_one_is_generated_private_and_kept(tmp_path: Path) -> None:
    data_dir = tmp_path / "new"
    (key,) = configured_keys((), data_dir)
    assert re.fullmatch(r"e2b_[0-9a-f]{40}", key)  # the form that older SDKs check
    assert configured_keys((), data_dir) == (key,)
    assert [path.name for path in data_dir.iterdir()] == [API_KEY_FILE]
    assert stat.S_IMODE((data_dir / API_KEY_FILE).stat().st_mode) == 0o600


def test_two_servers_that_start_at_once_agree_on_the_key(tmp_path: Path) -> None:
    found: list[tuple[str, ...]] = []
    start = threading.Barrier(8)

    def first_start() -> None:
        start.wait()
        found.append(configured_keys((), tmp_path))

    threads = [threading.Thread(target=first_start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


@pytest.mark.parametrize("key", ["with space", "new\nline", "ümlaut", "x" * 513])
def test_a_key_that_no_header_can_carry_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidRequest):
        configured_keys((key,), tmp_path)


def test_an_empty_key_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / API_KEY_FILE).write_text("\n")
    with pytest.raises(InvalidRequest, match="remove it"):
        configured_keys((), tmp_path)


def test_keys_do_not_repeat() -> None:
    assert len({new_key() for _ in range(100)}) == 100


def test_a_caller_does_not_show_its_key_in_logs() -> None:
    assert "very-secret" not in repr(Caller("team", "very-secret"))


def test_authentication_needs_no_running_store_for_configured_keys() -> None:
    class _Broken:
        async def team_of(self, digest: str) -> str | None:
            raise AssertionError("asked")

    assert asyncio.run(Authenticator(["k"], _Broken()).authenticate("k")).team_id == DEFAULT_TEAM_ID
