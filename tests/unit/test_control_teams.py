"""Teams and their keys: a key is shown once and kept as a digest, and one team never sees what is another's."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from atoll.control.access.auth import DEFAULT_TEAM_ID, digest_of, new_key
from atoll.control.app import api
from atoll.control.store import ApiKey, Team
from support.control import API_KEY, World, plane


@pytest.fixture
async def world(tmp_path: Path, database_url: str) -> AsyncIterator[World]:
    async with plane(tmp_path, database_url=database_url) as made:
        yield made


async def _stranger(world: World) -> dict[str, str]:
    """The header of another team's key."""
    key = new_key()
    await world.store.keys.add_team(Team("other", "Other", datetime.now(UTC)))
    await world.store.keys.add(ApiKey(str(uuid.uuid4()), "other", "a key", datetime.now(UTC)), digest_of(key))
    return {"X-API-Key": key}


# Keys


async def test_a_key_is_shown_once_works_and_is_kept_as_a_digest(world: World) -> None:
    made = (await world.client.post("/api-keys", json={"name": "ci"})).json()
    key = made["key"]
    assert key.startswith("e2b_")
    own = {"X-API-Key": key}
    (team,) = (await world.client.get("/teams", headers=own)).json()
    assert team["teamID"] == (await world.client.get("/teams")).json()[0]["teamID"]
    (listed,) = (await world.client.get("/api-keys", headers=own)).json()
    assert listed["id"] == made["id"]
    assert listed["lastUsed"] is not None
    value = key.removeprefix("e2b_")
    assert listed["mask"] == {
        "prefix": "e2b_",
        "valueLength": len(value),
        "maskedValuePrefix": value[:2],
        "maskedValueSuffix": value[-4:],
    }
    assert value not in str(listed)
    for file in list(world.data_dir.glob("atoll.db*")):
        assert value.encode() not in file.read_bytes()


async def test_a_revoked_key_opens_nothing_from_that_moment(world: World) -> None:
    made = (await world.client.post("/api-keys", json={"name": "ci"})).json()
    own = {"X-API-Key": made["key"]}
    assert (await world.client.get("/sandboxes", headers=own)).status_code == 200
    assert (await world.client.delete(f"/api-keys/{made['id']}")).status_code == 204
    assert (await world.client.get("/sandboxes", headers=own)).status_code == 401
    assert (await world.client.delete(f"/api-keys/{made['id']}")).status_code == 404


async def test_a_key_is_renamed(world: World) -> None:
    made = (await world.client.post("/api-keys", json={"name": "ci"})).json()
    assert (await world.client.patch(f"/api-keys/{made['id']}", json={"name": "cd"})).status_code == 200
    assert [one["name"] for one in (await world.client.get("/api-keys")).json()] == ["cd"]
    for wrong in ({}, {"name": ""}, {"name": 5}, {"name": "x" * 256}):
        assert (await world.client.post("/api-keys", json=wrong)).status_code == 400


async def test_keys_survive_a_restart(tmp_path: Path) -> None:
    async with plane(tmp_path) as world:
        key = (await world.client.post("/api-keys", json={"name": "ci"})).json()["key"]
    async with plane(tmp_path) as world:
        assert (await world.client.get("/teams", headers={"X-API-Key": key})).status_code == 200


async def test_a_team_may_not_have_any_number_of_keys(world: World) -> None:
    for number in range(100):
        await world.store.keys.add(ApiKey(f"k{number}", DEFAULT_TEAM_ID, "n", datetime.now(UTC)), f"{number:064}")
    response = await world.client.post("/api-keys", json={"name": "one more"})
    assert response.status_code == 429
    assert response.headers["Should-Retry"] == "false"


# Walls between teams

BODIES: dict[tuple[str, str], Any] = {
    ("POST", "/sandboxes/{sandbox_id}/connect"): {"timeout": 10},
    ("POST", "/sandboxes/{sandbox_id}/timeout"): {"timeout": 10},
    ("PUT", "/sandboxes/{sandbox_id}/network"): {"allowOut": ["1.1.1.1"]},
    ("PATCH", "/api-keys/{key_id}"): {"name": "stolen"},
    ("PATCH", "/events/webhooks/{webhook_id}"): {"name": "stolen"},
}
"""What a call needs to be a good one."""

OWNED = ("{sandbox_id}", "{key_id}", "{webhook_id}", "{team_id}")
EMPTY = ("/events/sandboxes/{sandbox_id}",)
"""Answers an empty list instead: whether there ever was such a sandbox is nobody else's business."""


def _routes_to_owned_things() -> list[tuple[str, str]]:
    paths = api(None).openapi()["paths"]  # type: ignore[arg-type]
    return [
        (method.upper(), path)
        for path, operations in paths.items()
        if any(name in path for name in OWNED)
        for method in operations
    ]


async def _own_things(world: World) -> dict[str, str]:
    sandbox_id = await world.create(metadata={"secret": "of-the-first-team"})
    hook = {
        "name": "mine",
        "url": "http://example.com/of-the-first-team",
        "events": ["sandbox.lifecycle.created"],
        "signatureSecret": "s",
    }
    webhook = (await world.client.post("/events/webhooks", json=hook)).json()
    key = (await world.client.post("/api-keys", json={"name": "of-the-first-team"})).json()
    (team,) = (await world.client.get("/teams")).json()
    return {
        "{team_id}": team["teamID"],
        "{sandbox_id}": sandbox_id,
        "{webhook_id}": webhook["id"],
        "{key_id}": key["id"],
    }


async def _everything(world: World) -> dict[str, Any]:
    answers = {
        path: (await world.client.get(path)).json() for path in ("/v2/sandboxes", "/api-keys", "/events/webhooks")
    }
    for key in answers["/api-keys"]:
        key.pop("lastUsed")
    return answers


async def test_one_team_sees_and_changes_nothing_of_another_by_any_route(world: World) -> None:
    mine = await _own_things(world)
    stranger = await _stranger(world)
    before = await _everything(world)
    routes = _routes_to_owned_things()
    assert len(routes) > 15
    for method, path in routes:
        concrete = path
        for name, value in mine.items():
            concrete = concrete.replace(name, value)
        assert "{" not in concrete, f"{path}: this test does not know what belongs there"
        query = {"metric": "concurrent_sandboxes"} if path.endswith("/max") else {}
        response = await world.client.request(
            method, concrete, headers=stranger, json=BODIES.get((method, path)), params=query
        )
        assert "of-the-first-team" not in response.text, (method, path)
        if path in EMPTY:
            assert response.json() == []
        else:
            # A team's id is no secret to deny: the interface's own answer is 403.
            expected = 403 if "{team_id}" in path else 404
            assert response.status_code == expected, (method, path, response.text)
            # Control: the same call means something to the owner.
            if method == "GET":
                assert (await world.client.get(concrete)).status_code in (200, 400), path
    assert await _everything(world) == before


LISTS = ["/sandboxes", "/v2/sandboxes", "/api-keys", "/events/webhooks", "/events/sandboxes", "/snapshots", "/teams"]


async def test_no_list_of_one_team_holds_anything_of_another(world: World) -> None:
    mine = await _own_things(world)
    stranger = await _stranger(world)
    async with asyncio.timeout(20):
        while not (await world.client.get("/events/sandboxes")).json():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    lists = [path for path in _lists() if path not in ("/health", "/openapi.json")]
    assert set(LISTS) <= set(lists)
    for path in lists:
        query = {"sandbox_ids": mine["{sandbox_id}"]} if path == "/sandboxes/metrics" else {}
        text = (await world.client.get(path, headers=stranger, params=query)).text
        assert "of-the-first-team" not in text, path
        assert mine["{sandbox_id}"] not in text, path
        assert API_KEY not in text, path


def _lists() -> list[str]:
    paths = api(None).openapi()["paths"]  # type: ignore[arg-type]
    return [path for path, operations in paths.items() if "{" not in path and "get" in operations]


async def test_the_quota_of_one_team_is_not_the_others(world: World, tmp_path: Path) -> None:
    from atoll.control.sandboxes.orders import Policy

    async with plane(tmp_path / "small", policy=Policy(max_sandboxes=1)) as small:
        await small.create()
        stranger = await _stranger(small)
        assert (await small.client.post("/v2/sandboxes", json={"templateID": "base"})).status_code == 429
        response: httpx.Response = await small.client.post(
            "/v2/sandboxes", json={"templateID": "base"}, headers=stranger
        )
        assert response.status_code == 201
