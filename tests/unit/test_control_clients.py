"""A client that is newer than the tested ones is served like any other, and told of in the log once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from atoll.control.access import client_versions as clients
from atoll.control.access.client_versions import TESTED, ClientVersionLog


class _Behind:
    """The application behind the census: counts whom it serves."""

    def __init__(self) -> None:
        self.served = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.served += 1


def _visit(agents: list[str]) -> tuple[int, list[dict[str, Any]]]:
    """How many were served, and what was logged of them."""
    behind = _Behind()
    with capture_logs() as logged:
        census = ClientVersionLog(behind)
        for agent in agents:
            scope = {"type": "http", "headers": [(b"user-agent", agent.encode())]}
            asyncio.run(census(scope, None, None))
    return behind.served, [dict(entry) for entry in logged]


def _agent(name: str, step: int = 0) -> str:
    major, minor, patch = TESTED[name]
    return f"{name}/{major}.{minor + step}.{patch}"


@pytest.mark.parametrize("name", TESTED)
def test_a_newer_client_is_served_each_time_and_told_of_once(name: str) -> None:
    served, logged = _visit([_agent(name, 1)] * 3)
    assert served == 3
    (entry,) = logged
    assert entry["log_level"] == "warning"
    assert entry["client"] == name
    assert entry["version"] == _agent(name, 1).partition("/")[2]
    assert entry["tested"] == _agent(name).partition("/")[2]


def test_each_newer_version_is_told_of_for_itself() -> None:
    _, logged = _visit([_agent("e2b-js-sdk", step) for step in (1, 2, 1, 2)])
    assert [entry["version"] for entry in logged] == [_agent("e2b-js-sdk", step).partition("/")[2] for step in (1, 2)]


@pytest.mark.parametrize("name", TESTED)
def test_the_tested_version_and_older_ones_are_no_news(name: str) -> None:
    assert _visit([_agent(name), f"{name}/0.0.1", "curl/8.0", ""]) == (4, [])


def test_whoever_claims_a_thousand_versions_fills_neither_log_nor_memory() -> None:
    served, logged = _visit([_agent("e2b-cli", step) for step in range(1, 1001)])
    assert served == 1000
    assert len(logged) == clients.MAX_LOGGED


def test_what_is_no_request_passes_by() -> None:
    behind = _Behind()
    asyncio.run(ClientVersionLog(behind)({"type": "lifespan"}, None, None))
    assert behind.served == 1
