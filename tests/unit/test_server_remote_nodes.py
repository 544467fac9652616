"""What a node reports counts for the sandboxes that are there, not for those that were begun anew on another node."""

from __future__ import annotations

from typing import Any, cast

from atoll.model.sandbox import EndReason, OomKill
from atoll.model.seams import NodeEvents
from atoll.server.remote_nodes import _EventsOfNode


class _Events:
    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        async def take(sandbox_id: str, *_: object) -> None:
            self.got.append((name, sandbox_id))

        return take


async def test_a_late_report_of_an_earlier_one_does_not_end_the_later() -> None:
    events = _Events()
    of_a = _EventsOfNode("a", cast(NodeEvents, events), {"here": "a", "moved": "b"}.get)
    for sandbox_id in ("here", "moved", "unknown"):
        await of_a.sandbox_ended(sandbox_id, EndReason.DIED, "")
        await of_a.sandbox_out_of_memory(sandbox_id, OomKill("x", 1))
        await of_a.sandbox_logged(sandbox_id, [])
    assert {sandbox_id for _, sandbox_id in events.got} == {"here", "unknown"}
    assert len(events.got) == 6
