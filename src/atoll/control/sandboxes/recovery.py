"""What to do at start with a sandbox that an earlier server left: a pure decision, carried out by the services.

A transition is written before it is begun and after it is done, so a state in …ING says what was under way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from atoll.model.sandbox import EndReason, SandboxState


@dataclass(frozen=True, slots=True)
class Verdict:
    """`state` is what the store should say in the end; `kill` whether the node must end it first."""

    state: SandboxState
    kill: bool = False
    reason: EndReason | None = None
    """Set iff `state` is ENDED."""


class AtNode(Enum):
    """What its node has of a sandbox."""

    NOTHING = auto()
    RUNNING = auto()
    PAUSED = auto()


def decide(state: SandboxState | None, at_node: AtNode, written_reason: EndReason | None = None) -> Verdict:
    """`state` is the store's (None: it knows no such sandbox).

    A verdict of PAUSING or RESUMING is to be carried on with. `written_reason` is the one that was written when a kill
    was begun.
    """
    ended, is_there = SandboxState.ENDED, at_node is not AtNode.NOTHING
    is_running = at_node is AtNode.RUNNING
    match state:
        case None | SandboxState.ENDED:
            # No caller can reach it: it would run for ever.
            return Verdict(ended, kill=is_there, reason=written_reason or EndReason.LOST)
        case SandboxState.CREATING:
            # No caller ever got its id: RUNNING is written before the answer.
            return Verdict(ended, kill=is_there, reason=EndReason.CREATE_FAILED)
        case SandboxState.KILLING:
            return Verdict(ended, kill=is_there, reason=written_reason or EndReason.KILLED)
    if not is_there:
        return Verdict(ended, reason=EndReason.LOST)
    match state:
        case SandboxState.PAUSING if is_running:
            return Verdict(SandboxState.PAUSING)
        case SandboxState.RESUMING if not is_running:
            return Verdict(SandboxState.RESUMING)
        case _:  # the node knows best; what it has is never ended for a difference
            return Verdict(SandboxState.RUNNING if is_running else SandboxState.PAUSED)
