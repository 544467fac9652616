"""The lifecycle table, and what a start does with each state that an earlier server can have left."""

from __future__ import annotations

import pytest

from atoll.control.sandboxes.recovery import AtNode, Verdict, decide
from atoll.model.errors import Conflict
from atoll.model.lifecycle import TRANSITIONS, check_transition
from atoll.model.sandbox import EndReason, SandboxState
from support.raising import raised

S = SandboxState


@pytest.mark.parametrize("state", [s for s in S if s is not S.ENDED])
def test_every_live_state_may_fall_to_ended(state: SandboxState) -> None:
    assert raised(check_transition, state, S.ENDED) is None


@pytest.mark.parametrize("wanted", list(S))
def test_nothing_comes_after_ended(wanted: SandboxState) -> None:
    with pytest.raises(Conflict, match="ended"):
        check_transition(S.ENDED, wanted)


def test_a_kill_once_begun_can_only_end() -> None:
    assert TRANSITIONS[S.KILLING] == {S.ENDED}


def test_the_table_speaks_of_every_state() -> None:
    assert set(TRANSITIONS) == set(S)


NOTHING, RUNNING, PAUSED = AtNode.NOTHING, AtNode.RUNNING, AtNode.PAUSED
LOST = Verdict(S.ENDED, reason=EndReason.LOST)


@pytest.mark.parametrize(
    ("state", "at_node", "expected"),
    [
        (None, RUNNING, Verdict(S.ENDED, kill=True, reason=EndReason.LOST)),
        (None, PAUSED, Verdict(S.ENDED, kill=True, reason=EndReason.LOST)),
        (S.CREATING, RUNNING, Verdict(S.ENDED, kill=True, reason=EndReason.CREATE_FAILED)),
        (S.CREATING, NOTHING, Verdict(S.ENDED, reason=EndReason.CREATE_FAILED)),
        (S.RUNNING, RUNNING, Verdict(S.RUNNING)),
        (S.RUNNING, PAUSED, Verdict(S.PAUSED)),
        (S.RUNNING, NOTHING, LOST),
        (S.PAUSING, RUNNING, Verdict(S.PAUSING)),
        (S.PAUSING, PAUSED, Verdict(S.PAUSED)),
        (S.PAUSING, NOTHING, LOST),
        (S.PAUSED, PAUSED, Verdict(S.PAUSED)),
        (S.PAUSED, RUNNING, Verdict(S.RUNNING)),
        (S.PAUSED, NOTHING, LOST),
        (S.RESUMING, RUNNING, Verdict(S.RUNNING)),
        (S.RESUMING, PAUSED, Verdict(S.RESUMING)),
        (S.RESUMING, NOTHING, LOST),
        (S.KILLING, RUNNING, Verdict(S.ENDED, kill=True, reason=EndReason.KILLED)),
        (S.KILLING, PAUSED, Verdict(S.ENDED, kill=True, reason=EndReason.KILLED)),
        (S.KILLING, NOTHING, Verdict(S.ENDED, reason=EndReason.KILLED)),
        (S.ENDED, PAUSED, Verdict(S.ENDED, kill=True, reason=EndReason.LOST)),
        (S.ENDED, NOTHING, LOST),
    ],
)
def test_what_was_half_done_is_finished_or_rolled_back(
    state: SandboxState | None, at_node: AtNode, expected: Verdict
) -> None:
    assert decide(state, at_node) == expected


def test_a_kill_cut_off_keeps_the_reason_that_was_written_when_it_began() -> None:
    assert decide(S.KILLING, RUNNING, EndReason.TIMEOUT).reason is EndReason.TIMEOUT


@pytest.mark.parametrize("state", [None, *S])
@pytest.mark.parametrize("at_node", AtNode)
def test_a_decision_ends_nothing_that_a_caller_knows_and_the_node_has(
    state: SandboxState | None, at_node: AtNode
) -> None:
    verdict = decide(state, at_node)
    assert (verdict.reason is not None) == (verdict.state is S.ENDED)
    assert not (verdict.kill and at_node is NOTHING)
    if state in (S.RUNNING, S.PAUSING, S.PAUSED, S.RESUMING) and at_node is not NOTHING:
        assert verdict.state is not S.ENDED
    if verdict.state in (S.PAUSING, S.RESUMING):
        assert verdict.state is state, "what is carried on with was begun"
