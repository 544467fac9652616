"""What a node runs stands still while its lease is over, and goes on when it is renewed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from atoll.node import lease
from atoll.node.lease import Lease
from atoll.node.live import LiveSandboxes


class _Handle:
    """Freezes at a word."""

    def __init__(self) -> None:
        self.stands = False

    async def freeze(self) -> None:
        self.stands = True

    async def thaw(self) -> None:
        self.stands = False


class _Live:
    """What the lease asks of LiveSandboxes."""

    def __init__(self) -> None:
        self.running = {"a": _Handle(), "b": _Handle()}
        self.turns = {name: asyncio.Lock() for name in self.running}

    def handles(self) -> dict[str, _Handle]:
        return dict(self.running)

    def get(self, name: str) -> Any:
        return SimpleNamespace(turn=self.turns[name])


async def _until(claim: Any) -> None:
    async with asyncio.timeout(10):
        while not claim():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.005)


async def test_it_begins_without_a_lease_and_each_renewal_holds_for_its_time(monkeypatch: Any) -> None:
    monkeypatch.setattr(lease, "_LOOK_EVERY_S", 0.01)
    now, live = [0.0], _Live()
    of = Lease(cast(LiveSandboxes, live), is_leased=True, clock=lambda: now[0])
    running = asyncio.create_task(of.run())
    try:
        await _until(lambda: all(one.stands for one in live.running.values()))
        await of.renew(6)
        assert not any(one.stands for one in live.running.values()), "it goes on when the renewal is answered"
        now[0] += 5
        await of.renew(6)
        now[0] += 5
        await asyncio.sleep(0.05)
        assert not any(one.stands for one in live.running.values())
        now[0] += 1
        async with live.turns["a"]:  # it is being paused: not to be touched now
            await _until(lambda: live.running["b"].stands)
            assert not live.running["a"].stands
        await _until(lambda: live.running["a"].stands)
    finally:
        running.cancel()


async def test_a_node_of_the_servers_own_needs_none() -> None:
    live = _Live()
    await Lease(cast(LiveSandboxes, live), is_leased=False).run()
    assert not any(one.stands for one in live.running.values())
