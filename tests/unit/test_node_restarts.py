"""Work of a build that its node's restarts cut off."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from atoll.control.templates import node_restarts
from atoll.control.templates.build_log import BuildLog
from atoll.control.templates.node_restarts import despite_restarts
from atoll.model.errors import NodeUnreachable


class Clock:
    """Moves where the work says, and by every pause."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(node_restarts, "asyncio", self)

    def get_running_loop(self) -> Clock:
        return self

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def log(tmp_path: Path) -> Iterator[BuildLog]:
    made = BuildLog(tmp_path / "log", lambda: datetime.now(UTC))
    yield made
    made.close()


async def test_two_restarts_an_hour_apart_are_waited_for_each(log: BuildLog, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lasts_s = Clock(monkeypatch), iter([1.0, 3600.0, 1.0, 10.0])

    async def work() -> str:
        lasted = next(lasts_s)
        clock.now += lasted
        if lasted != 10.0:
            raise NodeUnreachable("the node is away")
        return "done"

    assert await despite_restarts(work, log) == "done"


async def test_a_node_that_stays_away_is_given_up(log: BuildLog, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)

    async def work() -> str:
        clock.now += 30.0
        raise NodeUnreachable("the node is away")

    with pytest.raises(NodeUnreachable):
        await despite_restarts(work, log)
    assert clock.now < 1000.0 + 2 * node_restarts.BACK_WITHIN_S
