"""Secrets: told by their metadata alone, kept sealed, filled in where rules name them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import httpx

from atoll.control.secrets.placeholders import filled, filled_size, is_all_known, names_in
from atoll.control.store import Store, default_url
from atoll.control.store.keys import Team
from atoll.control.store.secrets import Secret
from atoll.model.network import NetworkPolicy
from atoll.model.sealing import Seal, kept_key, new_key
from support.control import plane

CANARY = "c4nary-of-a-secret"


def _policy(**headers: str) -> NetworkPolicy:
    return NetworkPolicy.checked(rules={"api.test": [headers]})


def test_a_rule_names_a_secret_and_gets_its_value() -> None:
    policy = _policy(Authorization="Bearer ${e2b.secrets.Key-1}", Other="plain")
    assert names_in(policy) == {"key-1"}
    assert filled(policy, {"key-1": "v"}).rules["api.test"] == ({"Authorization": "Bearer v", "Other": "plain"},)
    assert filled(policy, {}).rules["api.test"] == ({"Other": "plain"},), "what is no more goes nowhere"
    assert filled_size(policy, {"key-1": "v" * 100}) > filled_size(policy, {}) + 99
    assert not is_all_known("${e2b.iam.tokens.aws}")
    assert is_all_known("a ${e2b.secrets.b} ${e2b.secrets.c}")
    # Values are no patterns, and what a value says is not looked at again.
    assert filled(policy, {"key-1": r"\1${e2b.secrets.key-1}"}).rules["api.test"][0]["Authorization"].endswith("key-1}")


def test_a_seal_opens_what_it_closed_and_lets_out_nothing_false(tmp_path: Path) -> None:
    key = kept_key(tmp_path / "key")
    assert kept_key(tmp_path / "key") == key
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    seal, other, policy = Seal(key), Seal(new_key()), _policy(Authorization=CANARY)
    closed = seal.close_rules(policy)
    assert CANARY not in str(closed.as_json())
    assert seal.open_rules(closed) == policy
    assert seal.open_rules(policy) == policy, "written before there was a seal"
    assert other.open_rules(closed).rules == {"api.test": ({},)}


async def test_no_answer_carries_a_value(tmp_path: Path) -> None:
    async with plane(tmp_path) as world:
        client = world.client
        made = await client.post("/secrets", json={"name": "My-Key", "value": CANARY, "metadata": {"a": "b"}})
        assert made.status_code == 201, made.text
        secret = made.json()
        assert (secret["name"], secret["currentVersion"], secret["metadata"]) == ("my-key", 1, {"a": "b"})
        assert secret["secretID"].startswith("sec_")
        again = await client.post("/secrets", json={"name": "MY-KEY", "value": "x"})
        assert again.status_code == 409
        changed = await client.post("/secrets/my-key", json={"value": CANARY + "2"})
        assert (changed.json()["currentVersion"], changed.json()["metadata"]) == (2, {"a": "b"})
        answers = [made, again, changed]
        answers += [await client.get(f"/secrets{path}") for path in ("", "/my-key", "/" + secret["secretID"])]
        assert not any(CANARY in answer.text for answer in answers)
        assert (await client.get("/secrets/sec_unknown")).status_code == 404
        assert (await client.delete("/secrets/my-key")).status_code == 204
        assert (await client.delete("/secrets/my-key")).status_code == 404


async def test_secrets_come_in_pages(tmp_path: Path) -> None:
    async with plane(tmp_path) as world:
        for number in range(5):
            await world.client.post("/secrets", json={"name": f"s{number}", "value": "v"})
        names: list[str] = []
        query: dict[str, str] = {"limit": "2"}
        while True:
            page = await world.client.get("/secrets", params=query)
            names += [one["name"] for one in page.json()]
            if (token := page.headers.get("x-next-token")) is None:
                break
            query["nextToken"] = token
        assert names == [f"s{number}" for number in range(5)]
        assert (await world.client.get("/secrets", params={"nextToken": "é"})).status_code == 400


BAD: tuple[dict[str, object], ...] = (
    {"name": "sec_mine", "value": "v"},
    {"name": "a b", "value": "v"},
    {"name": "a", "value": ""},
    {"name": "a", "value": "two\nlines"},
    {"name": "a", "value": "v" * 16385},
    {"name": "a", "value": "v", "metadata": {"k" * 129: "v"}},
    {"name": "a", "value": "v", "metadata": {"k": "v" * 1025}},
    {"name": "a", "value": "v", "metadata": {str(number): "v" for number in range(33)}},
)


async def test_what_cannot_be_a_secret_is_refused(tmp_path: Path) -> None:
    async with plane(tmp_path) as world:
        for body in BAD:
            assert (await world.client.post("/secrets", json=body)).status_code == 400, body
        assert (await world.client.get("/secrets")).json() == []


def _rule(value: str) -> dict[str, object]:
    return {"network": {"rules": {"api.test": [{"transform": {"headers": {"X-Key": value}}}]}}}


async def test_a_rule_that_names_no_secret_of_the_team_is_refused(tmp_path: Path) -> None:
    async with plane(tmp_path) as world:

        async def create(value: str) -> httpx.Response:
            return await world.client.post("/v2/sandboxes", json={"templateID": "base", **_rule(value)})

        refused = await create("${e2b.secrets.nowhere}")
        assert refused.status_code == 400
        assert "no secret 'nowhere'" in refused.text
        assert "secrets alone" in (await create("${e2b.iam.tokens.x}")).text


async def test_the_database_has_no_value_in_clear(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    async with Store(default_url(tmp_path), Seal(new_key())) as store:
        await store.keys.add_team(Team("t", "t", now))
        await store.secrets.add(Secret("sec_1", "t", "one", 1, {}, now, now), CANARY)
        assert await store.secrets.values("t", ["one"]) == {"one": CANARY, "sec_1": CANARY}
        assert await store.secrets.values("other", ["one"]) == {}, "another team's"
    kept = _bytes_of(tmp_path)
    assert b"sec_1" in kept
    assert CANARY.encode() not in kept


def _bytes_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.iterdir())
