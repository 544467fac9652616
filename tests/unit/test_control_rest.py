"""The control plane's REST through its ASGI application, on a real node with the fake tier."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.control.access.auth import digest_of, new_key
from atoll.control.access.gate import MAX_BODY, PUBLIC, STREAMED
from atoll.control.app import api
from atoll.control.sandboxes.orders import Policy
from atoll.control.store import ApiKey, Team
from atoll.model.errors import PlatformError
from atoll.model.sandbox import EndReason, SandboxRecord, SandboxState
from atoll.testing.clock import ManualClock
from support.control import API_KEY, World, plane

UNKNOWN = "i0000000000000000000"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with plane(tmp_path) as made:
        yield made


def _error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body["code"] == status
    assert body["message"]
    return body["message"]


def _every_route() -> list[tuple[str, str]]:
    """All methods and paths, each parameter filled in."""
    routes = []
    for path, operations in api(None).openapi()["paths"].items():  # type: ignore[arg-type]
        concrete = path
        for name in ("sandbox_id", "template_id", "alias"):
            concrete = concrete.replace("{" + name + "}", UNKNOWN)
        while "{" in concrete:
            concrete = concrete[: concrete.index("{")] + "x" + concrete[concrete.index("}") + 1 :]
        routes += [(method.upper(), concrete) for method in operations]
    return routes


E2B_PATHS = """
GET /default-templates|GET /sandboxes|POST /sandboxes|GET /sandboxes/metrics|DELETE /sandboxes/i|GET /sandboxes/i
POST /sandboxes/i/connect|POST /sandboxes/i/fork|GET /sandboxes/i/logs|GET /sandboxes/i/metrics|PUT /sandboxes/i/network
POST /sandboxes/i/pause|POST /sandboxes/i/refreshes|POST /sandboxes/i/resume|POST /sandboxes/i/snapshots
POST /sandboxes/i/timeout|GET /secrets|POST /secrets|DELETE /secrets/s|GET /secrets/s|POST /secrets/s|GET /snapshots
GET /templates|GET /templates/aliases/a|DELETE /templates/tags|POST /templates/tags|DELETE /templates/t|GET /templates/t
PATCH /templates/t|GET /templates/t/builds/b/logs|GET /templates/t/builds/b/status|GET /templates/t/files/h
GET /templates/t/tags|GET /templates/t/tags/count|GET /templates/t/tags/exists|GET /templates/t/tags/groups
GET /templates/t/tags/g/assignments|GET /v2/sandboxes|POST /v2/sandboxes|POST /v2/sandboxes/i/connect
GET /v2/sandboxes/i/logs|GET /v2/templates|PATCH /v2/templates/t|POST /v2/templates/t/builds/b|POST /v3/templates
GET /volumes|POST /volumes|DELETE /volumes/v|GET /volumes/v|GET /health|GET /teams|GET /teams/t/metrics
GET /teams/t/metrics/max|GET /api-keys|POST /api-keys|PATCH /api-keys/k|DELETE /api-keys/k|POST /access-tokens
DELETE /access-tokens/a|GET /nodes|GET /nodes/n|POST /nodes/n|GET /default-templates|GET /admin/sandboxes/running-counts
POST /admin/teams/t/sandboxes/kill|POST /admin/teams/t/builds/cancel|POST /admin/teams/t/api-keys
DELETE /admin/teams/t/api-keys/k|POST /templates|POST /templates/t|POST /v2/templates
GET /templates/t/tags/t/assignments
POST /templates/t/builds/b|GET /events/sandboxes|GET /events/sandboxes/i|GET /events/webhooks|POST /events/webhooks
GET /events/webhooks/w|PATCH /events/webhooks/w|DELETE /events/webhooks/w
"""


async def test_no_path_of_e2bs_interface_is_left_unrouted(world: World) -> None:
    for entry in E2B_PATHS.replace("\n", "|").strip("|").split("|"):
        method, path = entry.split()
        response = await world.client.request(method, path)
        assert response.status_code < 500, entry
        assert response.status_code != 405, entry
        if response.status_code == 404:
            # The object is unknown, not the path.
            assert "not found" in response.json()["message"], entry
            assert not response.json()["message"].startswith(f"{method} /"), entry


STRANGERS = [{}, {"X-API-Key": "wrong"}, {"X-API-Key": ""}, {"Authorization": "Bearer no"}]


async def test_every_route_but_the_public_ones_needs_a_key(world: World) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(world.app), base_url="http://control") as stranger:
        for headers in STRANGERS:
            for method, path in [*_every_route(), ("GET", "/no/such/path"), ("GET", "/docsx")]:
                response = await stranger.request(method, path, headers=headers)
                if any(method == one and path.startswith(prefix) for one, prefix in STREAMED):
                    _error(response, 403)  # the path itself is the permission, and this one is none
                elif path in PUBLIC:
                    assert response.status_code in (200, 204, 307)
                elif path.startswith("/docs/"):
                    assert response.status_code in (200, 404)
                else:
                    _error(response, 401)


async def test_health_needs_no_key(world: World) -> None:
    response = await world.client.get("/health", headers={"X-API-Key": "wrong"})
    assert response.status_code == 204
    assert response.content == b""


async def test_the_key_may_come_as_a_bearer_token(world: World) -> None:
    response = await world.client.get("/teams", headers={"X-API-Key": "wrong", "Authorization": f"Bearer {API_KEY}"})
    _error(response, 401)  # a wrong key is not saved by a right token
    del world.client.headers["X-API-Key"]
    response = await world.client.get("/teams", headers={"Authorization": f"Bearer {API_KEY}"})
    (team,) = response.json()
    assert team["apiKey"] == API_KEY
    assert team["isDefault"] is True


async def test_a_created_sandbox_answers_in_e2bs_form(world: World) -> None:
    response = await world.client.post("/v2/sandboxes", json={"templateID": "base"})
    assert response.status_code == 201
    body = response.json()
    own = {"tier", "limitsNotEnforced"}
    assert set(body) == {"templateID", "sandboxID", "alias", "clientID", "envdVersion", "envdAccessToken"} | own
    assert body["alias"] == "base"
    route = world.node.find(body["sandboxID"])
    assert route is not None
    assert route.envd_access_token == body["envdAccessToken"]
    (await route.dial(49983)).close()


async def test_the_first_version_is_secure_only_when_asked_and_lives_15_seconds(world: World) -> None:
    plain = (await world.client.post("/sandboxes", json={"templateID": "base"})).json()
    assert "envdAccessToken" not in plain
    secure = (await world.client.post("/sandboxes", json={"templateID": "base", "secure": True})).json()
    assert secure["envdAccessToken"]
    detail = (await world.client.get(f"/sandboxes/{plain['sandboxID']}")).json()
    lifetime = datetime.fromisoformat(detail["endAt"]) - datetime.fromisoformat(detail["startedAt"])
    assert lifetime == timedelta(seconds=15)


async def test_details_tell_back_what_was_asked_for(world: World) -> None:
    sandbox_id = await world.create(
        metadata={"user": "värde %"}, timeout=77, allow_internet_access=False, network={"allowPublicTraffic": False}
    )
    detail = (await world.client.get(f"/sandboxes/{sandbox_id}")).json()
    assert detail["metadata"] == {"user": "värde %"}
    assert detail["state"] == "running"
    assert detail["allowInternetAccess"] is False
    assert detail["network"] == {"allowPublicTraffic": False}
    assert detail["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
    assert (detail["cpuCount"], detail["memoryMB"], detail["diskSizeMB"]) == (2, 1024, 10240)
    route = world.node.find(sandbox_id)
    assert route is not None
    assert route.traffic_access_token


async def test_the_domain_is_told_when_there_is_one(tmp_path: Path) -> None:
    async with plane(tmp_path, policy=Policy(domain="sbx.example")) as world:
        made = (await world.client.post("/v2/sandboxes", json={"templateID": "base"})).json()
        assert made["domain"] == "sbx.example"
        detail = await world.client.get(f"/sandboxes/{made['sandboxID']}")
        assert detail.json()["domain"] == "sbx.example"


async def test_a_chunked_body_is_read_whole(world: World) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for byte in json.dumps({"templateID": "base"}).encode():
            yield bytes([byte])

    response = await world.client.post("/v2/sandboxes", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 201


async def test_killing_is_204_once_and_404_after(world: World) -> None:
    sandbox_id = await world.create()
    answers = await asyncio.gather(*(world.client.delete(f"/sandboxes/{sandbox_id}") for _ in range(3)))
    assert 204 in [answer.status_code for answer in answers]
    assert {answer.status_code for answer in answers} <= {204, 404}
    _error(await world.client.delete(f"/sandboxes/{sandbox_id}"), 404)
    assert world.node.find(sandbox_id) is None
    assert not (world.data_dir / "sandboxes" / sandbox_id).exists()


BELOW_A_SANDBOX = [
    ("GET", "", None),
    ("DELETE", "", None),
    ("POST", "/timeout", {"timeout": 1}),
    ("POST", "/connect", {"timeout": 1}),
    ("POST", "/refreshes", {}),
    ("POST", "/resume", {}),
    ("POST", "/pause", {}),
    ("POST", "/fork", {}),
    ("POST", "/snapshots", {}),
    ("PUT", "/network", {}),
    ("GET", "/network/connections", None),
    ("GET", "/metrics", None),
    ("GET", "/logs", None),
]
IMPOSSIBLE_IDS = [UNKNOWN, "x", "%00%ff", "UPPER", "a%2F..%2Fb", "i" * 300, "-", "%F0%9F%A6%86"]


async def test_an_unknown_or_impossible_id_is_404_everywhere(world: World) -> None:
    for sandbox_id in IMPOSSIBLE_IDS:
        for method, path, body in BELOW_A_SANDBOX:
            _error(await world.client.request(method, f"/sandboxes/{sandbox_id}{path}", json=body), 404)


async def test_an_id_with_the_old_client_suffix_is_understood(world: World) -> None:
    sandbox_id = await world.create()
    assert (await world.client.get(f"/sandboxes/{sandbox_id}-6532622b")).json()["sandboxID"] == sandbox_id


async def test_another_teams_sandbox_does_not_exist(world: World) -> None:
    sandbox_id = await world.create()
    key = new_key()
    await world.store.keys.add_team(Team("other", "Other", datetime.now().astimezone()))
    await world.store.keys.add(ApiKey("k1", "other", "a key", datetime.now().astimezone()), digest_of(key))
    other = {"X-API-Key": key}
    _error(await world.client.get(f"/sandboxes/{sandbox_id}", headers=other), 404)
    _error(await world.client.delete(f"/sandboxes/{sandbox_id}", headers=other), 404)
    assert (await world.client.get("/v2/sandboxes", headers=other)).json() == []
    assert (await world.client.get("/teams", headers=other)).json()[0]["name"] == "Other"
    metrics = await world.client.get(f"/sandboxes/metrics?sandbox_ids={sandbox_id}", headers=other)
    assert metrics.json() == {"sandboxes": {}}
    assert (await world.client.get(f"/sandboxes/{sandbox_id}")).status_code == 200


WRONG_BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"base"',
    b"\xff\xfe",
    b'{"templateID": null}',
    b'{"templateID": ""}',
    b'{"templateID": 7}',
    b'{"templateID": "base", "timeout": -1}',
    b'{"templateID": "base", "timeout": 1e99}',
    b'{"templateID": "base", "timeout": 99999999999999999999999}',
    b'{"templateID": "base", "timeout": NaN}',
    b'{"templateID": "base", "timeout": "soon"}',
    b'{"templateID": "base", "timeout": 86401}',
    b'{"templateID": "base", "metadata": {"a": 1}}',
    b'{"templateID": "base", "metadata": {"a": "\\u0000"}}',
    b'{"templateID": "base", "metadata": {"a": "\\ud800"}}',
    b'{"templateID": "base", "metadata": []}',
    b'{"templateID": "base", "envVars": {"A=B": "c"}}',
    b'{"templateID": "base", "envVars": {"A": null}}',
    b'{"templateID": "base", "network": {"maskRequestHost": "a\\r\\nb: c"}}',
    b'{"templateID": "base", "network": 5}',
    b'{"templateID": "base", "volumeMounts": [{}]}',
    b'{"templateID": "base", "volumeMounts": [{"name": "a", "path": "/a"}]}',
    b'{"templateID": "base", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"templateID": "base", "timeout": ' + b"9" * 10_000 + b"}",
]


@pytest.mark.parametrize("path", ["/sandboxes", "/v2/sandboxes"])
async def test_a_wrong_body_is_the_callers_fault_and_makes_nothing(world: World, path: str) -> None:
    for body in WRONG_BODIES:
        response = await world.client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, (body[:100], response.text)
        _error(response, 400)
        assert len(response.content) < 2000
    assert await world.node.sandboxes() == []


async def test_an_unknown_template_is_404_and_names_those_there_are(world: World) -> None:
    for name in ("nope", "base:v9", "../base", "a\0b", "x" * 500):
        message = _error(await world.client.post("/v2/sandboxes", json={"templateID": name}), 404)
        assert "known templates: tid0" in message


async def test_a_template_is_found_by_name_by_id_and_with_the_default_tag(world: World) -> None:
    for name in ("base", "tid0", "base:default"):
        response = await world.client.post("/v2/sandboxes", json={"templateID": name})
        assert response.json()["templateID"] == "tid0"


@pytest.mark.parametrize("announced", [True, False])
async def test_an_oversized_body_is_refused_before_it_is_read(world: World, announced: bool) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    content = b" " * (MAX_BODY + 1) if announced else endless()
    response = await world.client.post("/v2/sandboxes", content=content, headers={"Content-Type": "application/json"})
    _error(response, 413)
    assert sent <= MAX_BODY + 2 * 65536


WRONG_QUERIES = [
    "limit=0",
    "limit=101",
    "limit=x",
    "state=dead",
    "order=up",
    "startedAfter=yesterday",
    "nextToken=%25%25",
    "metadata=novalue",
    "limit=" + "9" * 5000,
]


async def test_a_wrong_list_query_is_the_callers_fault(world: World) -> None:
    for query in WRONG_QUERIES:
        _error(await world.client.get(f"/v2/sandboxes?{query}"), 400)


async def test_lists_are_paged_by_the_header(world: World) -> None:
    made = [await world.create(metadata={"n": str(n)}) for n in range(3)]
    first = await world.client.get("/v2/sandboxes?limit=2&order=asc")
    assert [one["sandboxID"] for one in first.json()] == made[:2]
    assert first.headers["X-Total-Running"] == "3"
    token = first.headers["X-Next-Token"]
    second = await world.client.get("/v2/sandboxes", params={"limit": 2, "order": "asc", "nextToken": token})
    assert [one["sandboxID"] for one in second.json()] == made[2:]
    assert "X-Next-Token" not in second.headers
    assert [one["sandboxID"] for one in (await world.client.get("/sandboxes?metadata=n%3D1")).json()] == [made[1]]
    assert [one["sandboxID"] for one in (await world.client.get("/v2/sandboxes")).json()] == made[::-1]


async def test_metrics_are_one_reading_of_now(world: World) -> None:
    sandbox_id = await world.create()
    (reading,) = (await world.client.get(f"/sandboxes/{sandbox_id}/metrics")).json()
    assert set(reading) == {
        "timestamp", "timestampUnix", "cpuCount", "cpuUsedPct", "memUsed", "memTotal", "memCache", "diskUsed",
        "diskTotal",
    }  # fmt: skip
    assert (await world.client.get(f"/sandboxes/{sandbox_id}/metrics?end=1000")).json() == []
    many = await world.client.get(f"/sandboxes/metrics?sandbox_ids={sandbox_id},{UNKNOWN},{sandbox_id}")
    assert list(many.json()["sandboxes"]) == [sandbox_id]
    _error(await world.client.get("/sandboxes/metrics"), 400)
    _error(await world.client.get("/sandboxes/metrics?sandbox_ids=" + ",".join(f"i{n:04}" for n in range(101))), 400)
    _error(await world.client.get(f"/sandboxes/{sandbox_id}/metrics?start=-1"), 400)


async def test_there_are_no_snapshots_and_what_runs_is_not_resumed(world: World) -> None:
    sandbox_id = await world.create()
    _error(await world.client.post(f"/sandboxes/{sandbox_id}/resume", json={}), 409)
    assert (await world.client.get("/snapshots")).json() == []


async def test_templates_are_told_with_all_required_fields(world: World) -> None:
    listed = (await world.client.get("/templates")).json()
    assert listed == (await world.client.get("/default-templates")).json()
    assert {"createdBy", "lastSpawnedAt"} <= set(listed[0])
    assert [one["templateID"] for one in listed] == ["tid0", "tid1"]
    first = await world.client.get("/v2/templates?limit=1")
    second = await world.client.get("/v2/templates", params={"limit": 1, "nextToken": first.headers["X-Next-Token"]})
    assert [one["templateID"] for one in second.json()] == ["tid1"]
    assert (await world.client.get("/templates/base")).json()["builds"][0]["status"] == "ready"
    assert (await world.client.get("/templates/aliases/team%2Fother")).json() == {"templateID": "tid1", "public": True}
    _error(await world.client.get("/templates/aliases/team%2Fnone%3Av1"), 404)


async def test_a_name_of_a_template_with_a_slash_works_only_encoded(world: World) -> None:
    assert (await world.client.get("/templates/team%2Fother")).status_code == 200
    _error(await world.client.get("/templates/team/other"), 404)


async def test_the_quota_is_told_clearly_and_room_comes_back(tmp_path: Path) -> None:
    async with plane(tmp_path, policy=Policy(max_sandboxes=1)) as world:
        sandbox_id = await world.create()
        refused = await world.client.post("/v2/sandboxes", json={"templateID": "base"})
        assert "may have 1 at once" in _error(refused, 429)
        assert refused.headers["Should-Retry"] == "false"
        await world.client.delete(f"/sandboxes/{sandbox_id}")
        await world.create()


async def test_the_same_idempotency_key_makes_one_sandbox(world: World) -> None:
    async def create(key: str, **body: object) -> httpx.Response:
        return await world.client.post(
            "/v2/sandboxes", json={"templateID": "base", **body}, headers={"Idempotency-Key": key}
        )

    answers = await asyncio.gather(*(create("k-1") for _ in range(4)))
    answers.append(await create("k-1"))
    assert {answer.status_code for answer in answers} == {201}
    bodies = [answer.json() for answer in answers]
    assert all(body == bodies[0] for body in bodies)
    assert len(await world.node.sandboxes()) == 1
    _error(await create("k-1", timeout=5), 409)
    assert (await create("k-2")).json()["sandboxID"] != bodies[0]["sandboxID"]
    await world.client.delete(f"/sandboxes/{bodies[0]['sandboxID']}")
    assert "has ended" in _error(await create("k-1"), 409)
    for bad in ("", "a b", "x" * 256):
        _error(await create(bad), 400)


class Leaver:
    """A client that sends a create and leaves: while it is worked on, or when the answer comes."""

    def __init__(self, world: World, *, during: bool, headers: dict[str, str] | None = None) -> None:
        self.during = during
        self._sandboxes = world.data_dir / "sandboxes"
        body = b'{"templateID":"base"}'
        fields = {"x-api-key": API_KEY, "content-type": "application/json", "content-length": str(len(body))}
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "method": "POST",
            "path": "/v2/sandboxes",
            "raw_path": b"/v2/sandboxes",
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in {**fields, **(headers or {})}.items()],
        }
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive(self) -> dict:
        if self._messages:
            return self._messages.pop()
        while not self.during or not any(self._sandboxes.iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(self, message: object) -> None:
        raise OSError("nobody is there")


async def _states(world: World) -> set[SandboxState]:
    return {one.state for one in await world.store.in_states(list(SandboxState))}


@pytest.mark.parametrize("during", [True, False])
async def test_a_create_whose_client_has_left_is_undone(world: World, during: bool) -> None:
    leaver = Leaver(world, during=during)
    asking = asyncio.create_task(world.app(leaver.scope, leaver.receive, leaver.send))  # type: ignore[arg-type]
    await asyncio.wait([asking])
    assert asking.cancelled() is during
    async with asyncio.timeout(20):
        while await _states(world) != {SandboxState.ENDED}:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert list((world.data_dir / "sandboxes").iterdir()) == []


@pytest.mark.parametrize("during", [True, False])
async def test_a_create_with_an_idempotency_key_is_kept_for_who_asks_again(world: World, during: bool) -> None:
    leaver = Leaver(world, during=during, headers={"idempotency-key": "k"})
    asking = asyncio.create_task(world.app(leaver.scope, leaver.receive, leaver.send))  # type: ignore[arg-type]
    await asyncio.wait([asking])
    again = await world.client.post("/v2/sandboxes", json={"templateID": "base"}, headers={"Idempotency-Key": "k"})
    assert again.status_code == 201, again.text
    assert [one["sandboxID"] for one in (await world.client.get("/v2/sandboxes")).json()] == [again.json()["sandboxID"]]


async def test_a_failed_create_frees_its_idempotency_key(world: World) -> None:
    headers = {"Idempotency-Key": "k"}
    assert (await world.client.post("/v2/sandboxes", json={"templateID": "no"}, headers=headers)).status_code == 404
    assert (await world.client.post("/v2/sandboxes", json={"templateID": "base"}, headers=headers)).status_code == 201


async def test_a_sandbox_ends_at_its_timeout(tmp_path: Path) -> None:
    clock = ManualClock()
    async with plane(tmp_path, clock=clock) as world:
        short = await world.create(timeout=10)
        long = await world.create(timeout=10)
        assert (await world.client.post(f"/sandboxes/{long}/timeout", json={"timeout": 100})).status_code == 204
        await clock.advance(11)
        await _until_gone(world, short)
        _error(await world.client.get(f"/sandboxes/{short}"), 404)
        assert (await world.client.get(f"/sandboxes/{long}")).status_code == 200
        record = await world.store.find(short)
        assert record is not None
        assert record.end_reason == "timeout"


async def test_connect_and_refresh_only_lengthen_and_set_timeout_also_shortens(tmp_path: Path) -> None:
    clock = ManualClock()
    async with plane(tmp_path, clock=clock) as world:
        sandbox_id = await world.create(timeout=100)

        async def left() -> float:
            detail = (await world.client.get(f"/sandboxes/{sandbox_id}")).json()
            return (datetime.fromisoformat(detail["endAt"]) - clock.now()).total_seconds()

        joined = await world.client.post(f"/v2/sandboxes/{sandbox_id}/connect", json={"timeout": 10})
        assert joined.status_code == 200
        assert joined.json()["envdAccessToken"]
        assert await left() == 100
        await world.client.post(f"/v2/sandboxes/{sandbox_id}/connect", json={})
        assert await left() == 300
        await world.client.post(f"/sandboxes/{sandbox_id}/connect", json={"timeout": 500})
        assert await left() == 500
        await world.client.post(f"/sandboxes/{sandbox_id}/refreshes", json={"duration": 600})
        assert await left() == 600
        await world.client.post(f"/sandboxes/{sandbox_id}/refreshes")
        assert await left() == 600
        await world.client.post(f"/sandboxes/{sandbox_id}/timeout", json={"timeout": 7})
        assert await left() == 7
        for path, body in (
            ("timeout", {"timeout": 86401}),
            ("timeout", {}),
            ("connect", {}),
            ("refreshes", {"duration": 3601}),
        ):
            _error(await world.client.post(f"/sandboxes/{sandbox_id}/{path}", json=body), 400)


async def test_a_guest_that_dies_is_gone_from_the_api(world: World) -> None:
    sandbox_id = await world.create()
    handle = world.node.live.handle(sandbox_id)
    await handle.kill()  # behind the node's back
    await _until_gone(world, sandbox_id)
    _error(await world.client.get(f"/sandboxes/{sandbox_id}"), 404)
    record = await world.store.find(sandbox_id)
    assert record is not None
    assert record.end_reason == "died"


async def test_an_end_that_the_machine_refused_is_tried_again_until_it_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with plane(tmp_path, clock=clock) as world:
        sandbox_id = await world.create(timeout=1000)

        async def refuse(*_: object) -> bool:
            raise PlatformError("the machine is on fire")

        with monkeypatch.context() as patch:
            patch.setattr(world.node, "kill", refuse)
            asking = asyncio.create_task(world.client.delete(f"/sandboxes/{sandbox_id}"))
            for _ in range(10):
                await clock.advance(1)
                await asyncio.sleep(0.02)
            _error(await asking, 500)
        record = await world.store.find(sandbox_id)
        assert record is not None
        assert record.state is SandboxState.KILLING
        await clock.advance(31)
        await _until_gone(world, sandbox_id)


async def test_a_kill_holds_even_if_it_meets_a_timeout_that_was_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with plane(tmp_path, clock=clock) as world:
        sandbox_id = await world.create(timeout=5)
        begin_kill, go_on = world.store.begin_kill, asyncio.Event()

        async def slow(name: str, reason: EndReason, due_by: datetime | None) -> SandboxRecord | None:
            if reason is EndReason.TIMEOUT:
                await go_on.wait()
            return await begin_kill(name, reason, due_by)

        monkeypatch.setattr(world.store, "begin_kill", slow)
        await clock.advance(6)
        await world.client.post(f"/sandboxes/{sandbox_id}/timeout", json={"timeout": 100})
        killing = asyncio.create_task(world.client.delete(f"/sandboxes/{sandbox_id}"))
        await asyncio.sleep(0.1)
        go_on.set()
        assert (await killing).status_code == 204
        assert world.node.find(sandbox_id) is None


async def test_a_deadline_holds_even_if_the_store_failed_when_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    async with plane(tmp_path, clock=clock) as world:
        sandbox_id = await world.create(timeout=5)

        async def refuse(*_: object) -> bool:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(world.store, "begin_kill", refuse)
            await clock.advance(6)
        assert world.node.find(sandbox_id) is not None
        await clock.advance(31)
        await _until_gone(world, sandbox_id)


async def test_the_document_of_the_interface_is_complete_enough_to_generate_a_client(world: World) -> None:
    document = (await world.client.get("/openapi.json")).json()
    assert {"/v2/sandboxes", "/sandboxes/{sandbox_id}", "/v3/templates"} <= set(document["paths"])
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert len({op["operationId"] for op in operations}) == len(operations)
    assert document["security"] == [{"ApiKeyAuth": []}]


_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"]
_ANY_PATH = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="?#"), max_size=40)
_FIELDS = st.sampled_from(["templateID", "timeout", "metadata", "envVars", "network", "duration", "x"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_FIELDS, inner, max_size=5),
).map(lambda value: json.dumps(value).encode())


async def test_no_request_is_answered_with_our_own_failure(world: World) -> None:
    """Random methods, paths and bodies against one control plane."""
    requests: list[tuple[str, str, bytes]] = []

    @given(
        method=st.sampled_from(_METHODS),
        path=st.sampled_from([path for _, path in _every_route()]) | _ANY_PATH.map("/".__add__),
        body=st.binary(max_size=200) | _JSON,
    )
    @settings(max_examples=300, database=None)
    def collect(method: str, path: str, body: bytes) -> None:
        requests.append((method, path, body))

    collect()
    for method, path, body in requests:
        response = await world.client.request(
            method, f"http://control{path}", content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code < 500, (method, path, body)
        if response.status_code >= 400 and method != "HEAD":
            _error(response, response.status_code)


async def _until_gone(world: World, sandbox_id: str) -> None:
    async with asyncio.timeout(10):
        for look in itertools.count():
            record = await world.store.find(sandbox_id)
            if record is not None and record.ended_at is not None and world.node.find(sandbox_id) is None:
                return
            await asyncio.sleep(0.01 * min(look, 10))
