"""The oracle of the chaos suite can fail: it sees each kind of loss. And the plan is a function of its seed."""

from __future__ import annotations

from itertools import islice

import pytest

from chaos import plan
from chaos.oracle import PAUSED, RUNNING, Kept, Oracle, There

A = "sandbox-a"


@pytest.fixture
def oracle() -> Oracle:
    made = Oracle()
    made.create_begun()
    made.created(A)
    return made


def test_a_lost_write_is_seen(oracle: Oracle) -> None:
    oracle.write_begun(A, "f", "1")
    oracle.written(A, "f", "1")
    oracle.saw_file(A, "f", "1")
    assert oracle.violations == []
    oracle.saw_file(A, "f", None)
    assert "holds None, and '1' was acknowledged" in oracle.violations[0]


def test_an_earlier_content_is_a_loss_and_a_write_without_an_answer_may_be_either(oracle: Oracle) -> None:
    oracle.write_begun(A, "f", "1")
    oracle.written(A, "f", "1")
    oracle.write_begun(A, "f", "2")
    assert not oracle.may_be_written(A, "f")
    for content in ("2", "1", "2"):
        oracle.saw_file(A, "f", content)
    assert oracle.violations == []
    oracle.saw_file(A, "f", "other")
    oracle.written(A, "f", "2")
    oracle.saw_file(A, "f", "1")
    assert len(oracle.violations) == 2


def test_a_lost_sandbox_a_lost_pause_and_one_too_many_are_seen(oracle: Oracle) -> None:
    assert oracle.saw_listed({A: RUNNING}) == []
    assert "is not listed" in oracle.saw_listed({})[0]
    oracle.pause_begun(A, with_memory=True)
    assert oracle.saw_listed({A: RUNNING}) == oracle.saw_listed({A: PAUSED}) == []
    oracle.paused(A)
    assert "last known to be paused" in oracle.saw_listed({A: RUNNING})[0]
    assert "nobody was told of" in oracle.saw_listed({A: PAUSED, "stranger": RUNNING})[0]
    oracle.create_begun()
    assert oracle.saw_listed({A: PAUSED, "stranger": RUNNING}) == []
    oracle.refused()
    assert len(oracle.saw_listed({A: PAUSED, "stranger": RUNNING})) == 1


def test_one_that_was_ended_and_comes_back_is_seen(oracle: Oracle) -> None:
    oracle.end_begun(A)
    assert oracle.saw_listed({}) == oracle.saw_listed({A: RUNNING}) == []
    oracle.ended(A)
    assert "was ended and is listed" in oracle.saw_listed({A: RUNNING})[0]


def test_gone_is_a_loss_unless_its_end_was_asked_for(oracle: Oracle) -> None:
    oracle.end_begun(A)
    oracle.saw_gone(A)
    assert oracle.violations == []
    oracle.lives[A].there = There.YES
    oracle.saw_gone(A)
    assert "does not exist" in oracle.violations[0]


def test_a_log_with_a_gap_twice_a_line_or_an_end_that_was_longer_is_seen(oracle: Oracle) -> None:
    oracle.saw_log(A, ["1", "2", "3"])
    oracle.saw_log(A, [*map(str, range(1, 10)), "110", "11"])  # a full disk took the first digit of line 10
    oracle.lives[A].kept.logged = 3
    assert oracle.violations == []
    for wrong in (["1", "3", "4", "5"], ["1", "2", "2", "3"], ["1", "2"]):
        oracle.saw_log(A, wrong)
    assert len(oracle.violations) == 3


def test_a_command_that_ended_is_seen_unless_a_boot_may_have_ended_it(oracle: Oracle) -> None:
    oracle.command_began(A, 7)
    oracle.pause_begun(A, with_memory=True)
    oracle.paused(A)
    oracle.resume_begun(A, by_boot=False)
    oracle.resumed(A)
    oracle.saw_commands(A, [7, 8])
    assert oracle.violations == []
    oracle.saw_commands(A, [8])
    assert "have ended by themselves" in oracle.violations[0]
    oracle.command_began(A, 9)
    oracle.unsettled(A)
    oracle.saw_commands(A, [])
    assert len(oracle.violations) == 1


def test_a_child_of_a_snapshot_is_held_to_what_its_source_had(oracle: Oracle) -> None:
    oracle.written(A, "f", "1")
    oracle.saw_log(A, ["1", "2"])
    kept: Kept = oracle.lives[A].kept.copy()
    oracle.snapshot_taken("s", kept)
    oracle.written(A, "f", "2")
    oracle.create_begun()
    oracle.created("child", kept)
    oracle.saw_file("child", "f", "1")
    assert oracle.violations == []
    oracle.saw_file("child", "f", "2")
    oracle.saw_log("child", ["1"])
    assert len(oracle.violations) == 2
    assert oracle.saw_snapshots(["s"]) == []
    assert oracle.saw_snapshots([]) == ["snapshot s is not listed"]
    oracle.snapshot_end_begun("s")
    assert oracle.saw_snapshots([]) == oracle.saw_snapshots(["s"]) == []
    oracle.snapshot_ended("s")
    assert len(oracle.saw_snapshots(["s"])) == 1


def test_the_oracles_of_several_actors_are_one(oracle: Oracle) -> None:
    other = Oracle()
    other.create_begun()
    other.created("sandbox-b")
    assert Oracle.merged([oracle, other]).saw_listed({A: RUNNING, "sandbox-b": RUNNING}) == []
    assert len(oracle.saw_listed({A: RUNNING, "sandbox-b": RUNNING})) == 1


def test_the_same_seed_gives_the_same_run() -> None:
    for actor in (0, 1):
        assert list(islice(plan.lives(7, actor), 5)) == list(islice(plan.lives(7, actor), 5))
    assert next(plan.lives(7, 0)) != next(plan.lives(8, 0))
    assert plan.faults(7, 50, "gvisor", small_disk=True) == plan.faults(7, 50, "gvisor", small_disk=True)


def test_a_long_run_has_every_fault_every_point_and_every_step() -> None:
    faults = plan.faults(1, 500, "namespaces", small_disk=True)
    assert {fault.kind for fault in faults} == {"kill", "freeze", "fill", "jump"}
    assert {fault.victim for fault in faults if fault.kind == "kill"} == set(plan.ROLES)
    assert {fault.point for fault in faults} == {*plan.POINTS, ""}
    assert not any(fault.victim == "zygote" for fault in plan.faults(1, 500, "gvisor", small_disk=True))
    steps = [step for life in islice(plan.lives(1, 0), 200) for step in life.steps]
    assert {step.kind for step in steps} == set(plan._STEPS)
    assert len({step.number for step in steps}) == len(steps)
