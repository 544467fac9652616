"""Who is begun anew: what its node lacks or is lost with; not what a node that has just returned may have."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from atoll.control.background import Background
from atoll.control.sandboxes.failover import SandboxFailover
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import Limits, SandboxRecord, SandboxState

NOW = datetime(2030, 1, 1, tzinfo=UTC)
RECORD = SandboxRecord(
    sandbox_id="i1",
    team_id="t",
    template_id="base",
    template_alias="base",
    node_id="a",
    tier="fake",
    state=SandboxState.RUNNING,
    started_at=NOW,
    end_at=NOW + timedelta(hours=1),
    limits=Limits(),
    metadata={"restart": "always"},
    network=NetworkPolicy(),
)


def _failover(background: Background, lost: set[str], asked: list[str]) -> SandboxFailover:
    async def found(*_: object) -> Any:
        return RECORD

    async def records(*_: object) -> Any:
        return [RECORD]

    async def newest(*_: object) -> Any:
        return None

    def placed(*_: object, **__: object) -> str:
        asked.append("placed")
        failover.stop()
        return "b"

    nothing: Any = SimpleNamespace()
    nodes: Any = SimpleNamespace(is_lost=lost.__contains__, is_silent=lambda _: True)
    template = SimpleNamespace(gpu=None, shared=False)
    templates: Any = SimpleNamespace(newest_shared=newest, find=lambda *_: _value(template))
    store: Any = SimpleNamespace(find=found, in_states=records)
    placing: Any = SimpleNamespace(node_for=placed)
    clock: Any = SimpleNamespace(now=lambda: NOW)
    journal: Any = SimpleNamespace(note=lambda *_, **__: None)
    failover = SandboxFailover(
        store=store,
        nodes=nodes,
        templates=templates,
        placing=placing,
        policy=nothing,
        clock=clock,
        background=background,
        quota=nothing,
        expiry=nothing,
        journal=journal,
        filling=nothing,
        sleeping=nothing,
    )
    return failover


async def _value(value: Any) -> Any:
    return value


async def test_what_runs_on_a_lost_node_is_placed_elsewhere_and_not_if_the_node_is_back() -> None:
    for lost, expected in (({"a"}, ["placed"]), (set[str](), [])):
        asked: list[str] = []
        async with asyncio.timeout(10), Background() as background:
            _failover(background, lost, asked).node_given_up("a")
        assert asked == expected, lost


async def test_what_a_node_says_that_it_lacks_is_placed_although_it_answers() -> None:
    asked: list[str] = []
    async with asyncio.timeout(10), Background() as background:
        _failover(background, set(), asked).restart_soon(RECORD)
    assert asked == ["placed"]
