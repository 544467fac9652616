"""A key that floods the control plane with what is stored is the one that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.control.access.rates import BURST, CallRates, is_counted
from atoll.model.errors import RateExceeded
from support.control import plane


def test_a_burst_passes_and_then_the_rate_holds() -> None:
    now = 0.0
    rates = CallRates(lambda: now, per_s=10, burst=20)
    for _ in range(20):
        rates.count("key")
    with pytest.raises(RateExceeded, match="10 calls a second"):
        rates.count("key")
    rates.count("another")
    now = 0.5
    for _ in range(5):
        rates.count("key")
    with pytest.raises(RateExceeded):
        rates.count("key")
    now = 1e6
    for _ in range(20):
        rates.count("key")


def test_what_leaves_a_trace_is_counted() -> None:
    counted = ("POST /sandboxes/i/timeout", "PUT /sandboxes/i/network", "POST /v2/sandboxes/i/connect")
    counted += ("GET /events/webhooks", "POST /events/webhooks", "GET /events/sandboxes/i")
    free = ("GET /sandboxes/i", "POST /v2/sandboxes", "DELETE /sandboxes/i", "GET /sandboxes/i/network", "GET /health")
    assert all(is_counted(*call.split()) for call in counted)
    assert not any(is_counted(*call.split()) for call in free)


async def test_who_exceeds_it_is_refused_and_nobody_else(tmp_path: Path) -> None:
    async with plane(tmp_path) as world:
        sandbox_id = await world.create()
        other = (await world.client.post("/api-keys", json={"name": "other"})).json()["key"]
        call = ("POST", f"/sandboxes/{sandbox_id}/timeout")
        answers = [await world.client.request(*call, json={"timeout": 60}) for _ in range(int(BURST) + 200)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {204, 429}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        headers = {"X-API-Key": other}
        assert (await world.client.request(*call, json={"timeout": 60}, headers=headers)).status_code == 204
        assert (await world.client.get(f"/sandboxes/{sandbox_id}")).status_code == 200
