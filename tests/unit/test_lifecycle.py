"""The lifecycle table, and what a start does with each state that an earlier server can have left."""

from __future__ import annotations

import pytest

from atoll.control.sandboxes.recovery import Verdict, decide
from atoll.model.errors import Conflict
from atoll.model.lifecycle import TRANSITIONS, check_transition
from atoll.model.sandbox import EndReason, SandboxState

S = SandboxState


@pytest.mark.parametrize("state", [s for s in S if s is not S.ENDED])
def test_every_live_state_may_fall_to_ended(state: SandboxState) -> None:
    check_transition(state, S.ENDED)


@pytest.mark.parametrize("wanted", list(S))
def test_nothing_comes_after_ended(wanted: SandboxState) -> None:
    with pytest.raises(Conflict, match="ended"):
        check_transition(S.ENDED, wanted)


def test_a_kill_once_begun_can_only_end() -> None:
    assert TRANSITIONS[S.KILLING] == {S.ENDED}


def test_the_table_speaks_of_every_state() -> None:
    assert set(TRANSITIONS) == set(S)


@pytest.mark.parametrize(
    ("state", "alive", "expected"),
    [
        (None, True, Verdict(S.ENDED, kill=True, reason=EndReason.LOST)),
        (S.CREATING, True, Verdict(S.ENDED, kill=True, reason=EndReason.CREATE_FAILED)),
        (S.CREATING, False, Verdict(S.ENDED, reason=EndReason.CREATE_FAILED)),
        (S.RUNNING, True, Verdict(S.RUNNING)),
        (S.RUNNING, False, Verdict(S.ENDED, reason=EndReason.LOST)),
        (S.PAUSING, True, Verdict(S.RUNNING)),
        (S.PAUSING, False, Verdict(S.ENDED, reason=EndReason.LOST)),
        (S.PAUSED, True, Verdict(S.PAUSED, kill=True)),
        (S.PAUSED, False, Verdict(S.PAUSED)),
        (S.RESUMING, True, Verdict(S.RUNNING)),
        (S.RESUMING, False, Verdict(S.PAUSED)),
        (S.KILLING, True, Verdict(S.ENDED, kill=True, reason=EndReason.KILLED)),
        (S.KILLING, False, Verdict(S.ENDED, reason=EndReason.KILLED)),
        (S.ENDED, True, Verdict(S.ENDED, kill=True, reason=EndReason.LOST)),
        (S.ENDED, False, Verdict(S.ENDED, reason=EndReason.LOST)),
    ],
)
def test_what_was_half_done_is_finished_or_rolled_back(
    state: SandboxState | None, alive: bool, expected: Verdict
) -> None:
    assert decide(state, alive) == expected


def test_a_kill_cut_off_keeps_the_reason_that_was_written_when_it_began() -> None:
    assert decide(S.KILLING, True, EndReason.TIMEOUT).reason is EndReason.TIMEOUT


@pytest.mark.parametrize("state", [None, *S])
@pytest.mark.parametrize("alive", [True, False])
def test_a_decision_never_leaves_something_half_done_and_is_a_legal_move(
    state: SandboxState | None, alive: bool
) -> None:
    verdict = decide(state, alive)
    assert verdict.state in (S.RUNNING, S.PAUSED, S.ENDED)
    assert (verdict.reason is not None) == (verdict.state is S.ENDED)
    assert not (verdict.kill and not alive)
    if state is not None and verdict.state is not state:
        check_transition(state, verdict.state)
