"""Create, find, list, time out and kill sandboxes through the published Python SDK."""

from __future__ import annotations

import re
import time
import uuid
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)
from sdk_support import eventually

from support.tiers import one_tier


def _all(paginator) -> list:
    found = []
    while paginator.has_next:
        found += paginator.next_items()
    return found


def _ids(**query) -> list[str]:
    return [info.sandbox_id for info in _all(Sandbox.list(query=SandboxQuery(**query)))]


def test_create_without_arguments_gives_a_running_sandbox(create) -> None:
    sandbox = create()
    assert re.fullmatch(r"[a-z0-9]+", sandbox.sandbox_id)
    assert sandbox.is_running()
    assert sandbox.commands.run("echo hello").stdout == "hello\n"


def test_create_takes_every_parameter_and_info_tells_them_back(create) -> None:
    before = datetime.now(UTC)
    sandbox = create(
        "base",
        timeout=77,
        metadata={"purpose": "test", "odd key&=": "värde / 100%"},
        envs={"MODE": "on"},
        secure=True,
        allow_internet_access=False,
        lifecycle={"on_timeout": "kill"},
    )
    info = sandbox.get_info()
    assert info.sandbox_id == sandbox.sandbox_id
    assert info.metadata == {"purpose": "test", "odd key&=": "värde / 100%"}
    assert info.state == SandboxState.RUNNING
    assert info.name == "base"
    assert info.template_id
    assert info.cpu_count >= 1
    assert info.memory_mb >= 128
    assert tuple(int(part) for part in info.envd_version.split(".")) >= (0, 6, 4)
    assert before - timedelta(seconds=2) <= info.started_at <= datetime.now(UTC) + timedelta(seconds=2)
    assert timedelta(seconds=70) < info.end_at - info.started_at <= timedelta(seconds=78)
    assert info.allow_internet_access is False
    assert sandbox.commands.run("echo $MODE").stdout == "on\n"


@one_tier("decided by the control plane")
def test_the_default_timeout_is_five_minutes(create) -> None:
    info = create().get_info()
    assert timedelta(seconds=295) < info.end_at - info.started_at <= timedelta(seconds=301)


@one_tier("decided by the control plane")
def test_a_template_may_be_named_by_its_id(create) -> None:
    template_id = create("base").get_info().template_id
    assert create(template_id).get_info().template_id == template_id


def test_a_secure_sandbox_answers_only_to_its_token(create, server) -> None:
    sandbox = create(secure=True)
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    bare = httpx.get(f"{server.url}/envs", headers=headers)
    assert bare.status_code == 401
    assert "unauthorized" in bare.text.lower()
    good = httpx.get(f"{server.url}/envs", headers={**headers, "X-Access-Token": sandbox._envd_access_token})
    assert good.status_code == 200


def test_two_sandboxes_share_nothing(create) -> None:
    one, two = create(), create()
    assert one.sandbox_id != two.sandbox_id
    one.files.write("mine", "1")
    assert not two.files.exists("mine")
    one.commands.run("sleep 86387", background=True)
    assert two.commands.list() == []
    assert one.commands.run("hostname").stdout != ""
    assert two.commands.run("ls /home").stdout == "user\n"


def test_kill_is_true_once_and_then_false(create) -> None:
    sandbox = create()
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert Sandbox.kill(sandbox.sandbox_id) is False


def test_a_killed_sandbox_is_gone_for_every_call(create) -> None:
    sandbox = create()
    sandbox.kill()
    assert sandbox.is_running() is False
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(sandbox.sandbox_id)
    with pytest.raises(SandboxNotFoundException):
        sandbox.set_timeout(10)
    with pytest.raises(TimeoutException, match="was not found"):
        sandbox.commands.run("true")
    with pytest.raises(TimeoutException, match="was not found"):
        sandbox.files.read("/etc/hostname")
    assert sandbox.sandbox_id not in _ids()


def test_leaving_the_with_block_kills(server) -> None:
    with Sandbox.create() as sandbox:
        assert sandbox.is_running()
    assert not sandbox.is_running()


def test_a_sandbox_ends_at_its_timeout(create) -> None:
    sandbox = create(timeout=1)
    eventually(lambda: not sandbox.is_running(), what="the sandbox ended at its timeout")
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()


@one_tier("decided by the control plane")
def test_set_timeout_shortens_and_lengthens(create) -> None:
    sandbox = create(timeout=300)
    sandbox.set_timeout(600)
    assert sandbox.get_info().end_at - datetime.now(UTC) > timedelta(seconds=500)
    Sandbox.set_timeout(sandbox.sandbox_id, 1)
    eventually(lambda: not sandbox.is_running(), what="the sandbox ended at the shortened timeout")


@one_tier("decided by the control plane")
def test_a_lengthened_timeout_outlives_the_first(create) -> None:
    sandbox = create(timeout=2)
    sandbox.set_timeout(120)
    time.sleep(3)
    assert sandbox.is_running()


def test_connect_finds_the_same_sandbox(create) -> None:
    sandbox = create()
    sandbox.files.write("note", "kept")
    same = Sandbox.connect(sandbox.sandbox_id)
    assert same.sandbox_id == sandbox.sandbox_id
    assert same.files.read("note") == "kept"
    assert same.commands.run("echo hi").stdout == "hi\n"
    assert sandbox.connect().files.read("note") == "kept"


@one_tier("decided by the control plane")
def test_connect_lengthens_a_timeout_but_never_shortens_it(create) -> None:
    sandbox = create(timeout=100)
    Sandbox.connect(sandbox.sandbox_id, timeout=1000)
    longer = sandbox.get_info().end_at
    assert longer - datetime.now(UTC) > timedelta(seconds=900)
    Sandbox.connect(sandbox.sandbox_id, timeout=10)
    assert sandbox.get_info().end_at == longer


@one_tier("decided by the control plane")
def test_listing_filters_by_metadata_with_awkward_characters(create) -> None:
    mark = uuid.uuid4().hex
    one = create(metadata={"mark": mark, "k &=/": "v &=/ é"})
    two = create(metadata={"mark": mark})
    assert set(_ids(metadata={"mark": mark})) == {one.sandbox_id, two.sandbox_id}
    assert _ids(metadata={"mark": mark, "k &=/": "v &=/ é"}) == [one.sandbox_id]
    assert _ids(metadata={"mark": "nothing-has-this"}) == []


@one_tier("decided by the control plane")
def test_listing_filters_by_state_template_and_start(create) -> None:
    mark = {"mark": uuid.uuid4().hex}
    sandbox = create(metadata=mark)
    assert _ids(metadata=mark, state=[SandboxState.RUNNING]) == [sandbox.sandbox_id]
    assert _ids(metadata=mark, state=[SandboxState.PAUSED]) == []
    assert _ids(metadata=mark, state=[SandboxState.RUNNING, SandboxState.PAUSED]) == [sandbox.sandbox_id]
    assert _ids(metadata=mark, template="base") == [sandbox.sandbox_id]
    assert _ids(metadata=mark, template="no-such-template") == []
    assert _ids(metadata=mark, started_after=datetime.now(UTC) - timedelta(minutes=5)) == [sandbox.sandbox_id]
    assert _ids(metadata=mark, started_after=datetime.now(UTC) + timedelta(minutes=5)) == []


@one_tier("decided by the control plane")
def test_pages_are_complete_without_repeats_in_both_orders(create) -> None:
    mark = {"mark": uuid.uuid4().hex}
    made = [create(metadata=mark).sandbox_id for _ in range(7)]
    for order, expected in (("asc", made), ("desc", made[::-1])):
        paginator = Sandbox.list(query=SandboxQuery(metadata=mark), limit=3, order=order)
        pages = []
        while paginator.has_next:
            pages.append([info.sandbox_id for info in paginator.next_items()])
        assert [len(page) for page in pages] == [3, 3, 1]
        assert [sandbox_id for page in pages for sandbox_id in page] == expected


@one_tier("decided by the control plane")
def test_a_page_can_be_continued_from_its_token_by_another_client(create) -> None:
    mark = {"mark": uuid.uuid4().hex}
    made = {create(metadata=mark).sandbox_id for _ in range(3)}
    first = Sandbox.list(query=SandboxQuery(metadata=mark), limit=2)
    seen = {info.sandbox_id for info in first.next_items()}
    rest = Sandbox.list(query=SandboxQuery(metadata=mark), limit=2, next_token=first.next_token)
    seen |= {info.sandbox_id for info in rest.next_items()}
    assert seen == made
    assert not rest.has_next


@one_tier("decided by the control plane")
def test_a_nonsense_page_token_is_the_callers_mistake(server) -> None:
    with pytest.raises((InvalidArgumentException, SandboxException)) as caught:
        Sandbox.list(next_token="%%%not-a-token%%%").next_items()
    assert "500" not in str(caught.value)


def test_metrics_are_plausible(create) -> None:
    sandbox = create()
    sandbox.commands.run("head -c 3000000 /dev/zero > filler")

    def latest():
        metrics = sandbox.get_metrics()
        return metrics[-1] if metrics else None

    metric = eventually(latest, what="a first reading")
    assert metric.cpu_count >= 1
    assert metric.cpu_used_pct >= 0
    assert 0 < metric.mem_used <= metric.mem_total
    assert 0 < metric.disk_used <= metric.disk_total
    assert abs(metric.timestamp.timestamp() - time.time()) < 120


@one_tier("decided by the control plane")
def test_the_first_forms_of_create_and_connect_are_served(server) -> None:
    """The published CLI and older SDKs use them."""
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.api_key}) as client:
        made = client.post("/sandboxes", json={"templateID": "base", "secure": True})
        assert made.status_code == 201
        body = made.json()
        sandbox_id = body["sandboxID"]
        assert body["envdAccessToken"]
        detail = client.get(f"/sandboxes/{sandbox_id}").json()
        lifetime = datetime.fromisoformat(detail["endAt"]) - datetime.fromisoformat(detail["startedAt"])
        assert timedelta(seconds=14) < lifetime <= timedelta(seconds=16)
        joined = client.post(f"/sandboxes/{sandbox_id}/connect", json={"timeout": 60})
        assert joined.status_code == 200
        assert joined.json()["sandboxID"] == sandbox_id
        assert client.post(f"/sandboxes/{sandbox_id}/refreshes", json={"duration": 100}).status_code == 204
        assert sandbox_id in {item["sandboxID"] for item in client.get("/sandboxes").json()}
        assert client.delete(f"/sandboxes/{sandbox_id}").status_code == 204
        assert client.delete(f"/sandboxes/{sandbox_id}").status_code == 404


@one_tier("decided by the control plane")
def test_one_idempotency_key_makes_one_sandbox(create) -> None:
    key = uuid.uuid4().hex
    first = create(idempotency_key=key)
    second = create(idempotency_key=key)
    assert first.sandbox_id == second.sandbox_id


@one_tier("the same requests as the synchronous client's, whose tests run in each tier")
async def test_the_async_sdk_does_the_same(server) -> None:
    sandbox = await AsyncSandbox.create(timeout=100, metadata={"flavour": "async"}, envs={"A": "1"})
    try:
        assert await sandbox.is_running()
        assert (await sandbox.get_info()).metadata == {"flavour": "async"}
        await sandbox.set_timeout(200)
        same = await AsyncSandbox.connect(sandbox.sandbox_id)
        assert (await same.commands.run("echo $A")).stdout == "1\n"
        paginator = AsyncSandbox.list(query=SandboxQuery(metadata={"flavour": "async"}))
        assert sandbox.sandbox_id in {info.sandbox_id for info in await paginator.next_items()}
    finally:
        assert await sandbox.kill() is True
    assert await sandbox.is_running() is False
    with pytest.raises(SandboxNotFoundException):
        await sandbox.get_info()
