"""What a node runs stands still while its lease is over, and goes on when it is renewed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

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
        return SimpleNamespace(turn=self.turns[name], handle=self.running.get(name))


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
        await of.renew(6, now[0])
        await of.in_force()
        assert not any(one.stands for one in live.running.values()), "it goes on when the renewal is answered"
        now[0] += 5
        await of.renew(6, now[0])
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


async def test_a_renewal_that_was_long_on_its_way_or_is_of_before_a_restart_renews_nothing(monkeypatch: Any) -> None:
    monkeypatch.setattr(lease, "_LOOK_EVERY_S", 0.01)
    now, live = [100.0], _Live()
    of = Lease(cast(LiveSandboxes, live), is_leased=True, clock=lambda: now[0])
    running = asyncio.create_task(of.run())
    try:
        await _until(lambda: all(one.stands for one in live.running.values()))
        for since in (94.0, 5000.0):
            await of.renew(6, since)
            assert all(one.stands for one in live.running.values()), since
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await of.in_force()
        paused = live.running.pop("a")
        await of.renew(6, 95.0)
        assert (paused.stands, live.running["b"].stands) == (True, False), "what was paused meanwhile is left alone"
        now[0] += 1
        await _until(lambda: live.running["b"].stands)
    finally:
        running.cancel()


async def test_one_that_does_not_freeze_keeps_no_other_running(monkeypatch: Any) -> None:
    live, tried = _Live(), asyncio.Event()

    async def never() -> None:
        tried.set()
        await asyncio.Event().wait()

    live.running["a"].freeze = never  # type: ignore[method-assign]
    monkeypatch.setattr(lease, "_FREEZE_WITHIN_S", 0.01)
    of = Lease(cast(LiveSandboxes, live), is_leased=True, clock=lambda: 0.0)
    running = asyncio.create_task(of.run())
    try:
        await _until(lambda: tried.is_set() and live.running["b"].stands)
        async with asyncio.timeout(10):
            await of.renew(6, 0.0)
        assert not live.running["b"].stands, "nor does its renewal wait for it"
    finally:
        running.cancel()


async def test_a_node_of_the_servers_own_needs_none() -> None:
    live = _Live()
    await Lease(cast(LiveSandboxes, live), is_leased=False).run()
    assert not any(one.stands for one in live.running.values())
