"""What to do at start with a sandbox that an earlier server left: a pure decision, carried out by the services.

A transition is written before it is begun and after it is done, so a state in …ING says what was under way.
"""

from __future__ import annotations

from dataclasses import dataclass

from atoll.model.sandbox import EndReason, SandboxState


@dataclass(frozen=True, slots=True)
class Verdict:
    """`state` is what the store should say in the end; `kill` whether the node must end it first."""

    state: SandboxState
    kill: bool = False
    reason: EndReason | None = None
    """Set iff `state` is ENDED."""


def decide(state: SandboxState | None, alive: bool, written_reason: EndReason | None = None) -> Verdict:
    """`state` is the store's (None: it knows no such sandbox); `alive` is the node's answer.

    `written_reason` is the one that was written when a kill was begun.
    """
    ended = SandboxState.ENDED
    match state:
        case None | SandboxState.ENDED:
            # No caller can reach it: it would run for ever.
            return Verdict(ended, kill=alive, reason=written_reason or EndReason.LOST)
        case SandboxState.CREATING:
            # No caller ever got its id: RUNNING is written before the answer.
            return Verdict(ended, kill=alive, reason=EndReason.CREATE_FAILED)
        case SandboxState.RUNNING | SandboxState.PAUSING:
            # A pause that was cut off leaves the sandbox running, as if it had not been asked for.
            return Verdict(SandboxState.RUNNING) if alive else Verdict(ended, reason=EndReason.LOST)
        case SandboxState.PAUSED:
            return Verdict(SandboxState.PAUSED, kill=alive)
        case SandboxState.RESUMING:
            return Verdict(SandboxState.RUNNING) if alive else Verdict(SandboxState.PAUSED)
        case SandboxState.KILLING:
            return Verdict(ended, kill=alive, reason=written_reason or EndReason.KILLED)
