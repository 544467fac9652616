"""The pool's policy: how many children wait, booted for what, and who serves a create. Pure: no process is started."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from atoll.isolation.namespaces.pool import Boot, Demand, Drop, Park, candidates, next_step


@dataclass(eq=False)
class Waiting:
    key: str | None = None
    is_ready: bool = True


KEYS = st.sampled_from("abcd")
MEMBERS = st.lists(st.builds(Waiting, st.none() | KEYS, st.booleans()), max_size=10)


def demand_for(*keys: str) -> Demand[str]:
    demand: Demand[str] = Demand()
    for key in keys:
        demand.note(key)
    return demand


def settle(size: int, demand: Demand[str], members: list[Waiting]) -> list[Waiting]:
    """Takes steps until there is none, as the zygote does: what is on its way arrives between two steps."""
    for _ in range(10 * (size + len(members) + 1)):
        for member in members:
            member.is_ready = True
        match next_step(size, demand, members):
            case Park():
                members.append(Waiting(is_ready=False))
            case Boot(child, key):
                child.key, child.is_ready = key, False
            case Drop(child):
                members.remove(child)
            case None:
                return members
    raise AssertionError("the pool never comes to rest")


def test_before_anybody_has_asked_children_are_parked_only() -> None:
    assert [member.key for member in settle(6, Demand(), [])] == [None] * 6


def test_two_thirds_wait_for_what_is_asked_for_most_and_the_rest_for_the_next() -> None:
    settled = settle(6, demand_for("a", "b", "a", "c", "a", "b"), [])
    assert sorted(str(member.key) for member in settled) == ["a"] * 4 + ["b"] * 2


def test_templates_asked_for_in_turn_do_not_drive_each_other_out() -> None:
    members = settle(6, demand_for("a", "b"), [])
    before = sorted(str(member.key) for member in members)
    assert sorted(str(member.key) for member in settle(6, demand_for("b", "a"), members)) == before


def test_what_cannot_be_made_ahead_is_neither_made_nor_waited_for() -> None:
    demand = demand_for("a", "b")
    demand.forget("a")
    assert {member.key for member in settle(3, demand, [])} == {"b"}
    assert next_step(2, demand, [Waiting(), Waiting()], may_boot=lambda _: False) is None
    assert next_step(2, demand, [], may_park=False) is None


def test_nothing_is_dropped_for_what_a_child_on_its_way_can_serve() -> None:
    assert next_step(2, demand_for("a"), [Waiting("b"), Waiting(is_ready=False)]) is None
    assert isinstance(next_step(2, demand_for("a"), [Waiting("b"), Waiting("b")]), Drop)


@given(st.integers(0, 8), st.lists(KEYS, max_size=20), MEMBERS)
def test_from_any_state_the_pool_comes_to_rest_and_is_then_as_it_should_be(
    size: int, asked: list[str], members: list[Waiting]
) -> None:
    demand = demand_for(*asked)
    started_with = len(members)
    settled = settle(size, demand, members)
    assert size <= len(settled) <= max(size, started_with)
    booted = {key: sum(member.key == key for member in settled) for key in "abcd"}
    shares = demand.shares(size, booted)
    assert sum(shares.values()) <= size
    assert all(booted[key] >= share for key, share in shares.items())


@given(st.integers(0, 8), st.lists(KEYS, max_size=20), MEMBERS)
def test_a_step_forks_only_into_room_and_touches_only_children_that_wait(
    size: int, asked: list[str], members: list[Waiting]
) -> None:
    match next_step(size, demand_for(*asked), members):
        case Park():
            assert len(members) < size
        case Boot(child, key):
            assert (child.is_ready, child.key) == (True, None)
            assert key in asked[-8:]
        case Drop(child):
            assert child.is_ready
            assert child.key is not None


@given(MEMBERS, KEYS)
def test_a_create_takes_the_child_that_is_furthest_and_never_anothers(members: list[Waiting], key: str) -> None:
    found = candidates(key, members)
    assert all(member.key in (None, key) for member in found)
    assert len(found) == sum(member.key in (None, key) for member in members)
    ranks = [(member.key is None, not member.is_ready) for member in found]
    assert ranks == sorted(ranks)
    assert all(member.key == key for member in candidates(key, members, booted_only=True))
