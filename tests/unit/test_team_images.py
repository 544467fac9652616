"""What the images of a team take: whose they are, what they stand on, and when there is room again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from atoll.control.templates.kept import TeamImages
from atoll.model.errors import NodeUnreachable, QuotaExceeded
from atoll.model.seams import NodeImage

MIB = 1 << 20


class World:
    """Two nodes, and what teams' builds name."""

    def __init__(self, most_mib: int | None = 100) -> None:
        self.now = 0.0
        self.asked = 0
        self.paused = 0
        self.named: dict[str, set[str]] = {}
        self.on: dict[str, dict[str, NodeImage]] = {"one": {}, "two": {}}
        self.silent: set[str] = set()
        clients = {name: SimpleNamespace(images=lambda name=name: self._images(name)) for name in self.on}
        nodes: Any = SimpleNamespace(worth_asking=lambda: clients, find=clients.get)
        self.images = TeamImages(self, nodes, most_mib, lambda _: self.paused, lambda: self.now)  # type: ignore[arg-type]

    async def images_of_team(self, team_id: str) -> set[str]:
        return set(self.named.get(team_id, ()))

    async def _images(self, name: str) -> list[NodeImage]:
        self.asked += 1
        if name in self.silent:
            raise NodeUnreachable(name)
        return list(self.on[name].values())

    def make(self, image_id: str, mib: int, *below: str, node: str = "one", team: str = "") -> None:
        self.on[node][image_id] = NodeImage(image_id, mib * MIB, 1, False, below)
        if team:
            self.named.setdefault(team, set()).add(image_id)
        self.now += 10

    async def has_room(self, team: str = "a") -> bool:
        try:
            await self.images.check_room(team)
        except QuotaExceeded:
            return False
        return True


async def test_a_team_that_has_as_much_as_it_may_gets_no_more_and_others_do() -> None:
    world = World()
    world.make("x", 60, team="a")
    assert await world.has_room()
    world.make("y", 40, node="two", team="a")
    with pytest.raises(QuotaExceeded, match="100 MiB of disk and may take 100"):
        await world.images.check_room("a")
    assert await world.has_room("b")
    world.silent = {"two"}
    world.now += 10
    assert not await world.has_room(), "what a node said last counts while it says nothing"
    world.named["a"].discard("y")
    assert await world.has_room()


async def test_what_is_paused_counts_too() -> None:
    world = World()
    world.make("x", 60, team="a")
    world.paused = 39 * MIB
    assert await world.has_room()
    world.paused += MIB
    assert not await world.has_room()


async def test_what_an_image_stands_on_counts_once() -> None:
    world = World()
    world.make("base", 50)
    world.make("x", 20, "base", team="a")
    world.make("y", 20, "base", "x", team="a")
    assert await world.has_room()
    world.make("z", 10, "base", team="a")
    assert not await world.has_room()


async def test_deleting_makes_room_but_not_for_making_and_deleting_in_turn() -> None:
    world = World()
    for number in range(2):
        assert await world.has_room()
        world.make(f"old{number}", 50)
        world.images.made("a", f"old{number}")
    world.make("x", 49, team="a")
    assert await world.has_room(), "with what it has deleted a team may have half as much again"
    world.make("y", 1)
    world.images.made("a", "y")
    with pytest.raises(QuotaExceeded, match="150 MiB") as caught:
        await world.images.check_room("a")
    assert "two hours" in caught.value.hint
    del world.on["one"]["old0"]
    world.now += 10
    assert await world.has_room()


async def test_nodes_are_asked_again_for_what_is_new_or_after_a_while() -> None:
    world = World()
    for _ in range(3):
        await world.images.check_room("a")
    assert world.asked == 2
    world.now += 1
    world.images.made("b", "x")
    await world.images.check_room("a")
    assert world.asked == 2
    world.now += 1
    await world.images.check_room("b")
    assert world.asked == 4
    world.now += 60
    await world.images.check_room("a")
    assert world.asked == 6


async def test_without_a_bound_nobody_is_asked() -> None:
    world = World(None)
    world.images.made("a", "x")
    await world.images.check_room("a")
    assert world.asked == 0
