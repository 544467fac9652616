"""What a start does with each sandbox's directory that it finds: a pure decision, carried out by `takeover`.

never finished                 discard
CREATING, KILLING              end what is left of it, then discard: no caller got its id, or it was to end
RUNNING                        adopt
PAUSING, PAUSED, RESUMING      leave: no process to adopt, and nothing to lose by waiting
ENDED                          discard
of a newer version             leave, with its processes
"""

from __future__ import annotations

from enum import StrEnum

from atoll.isolation.directory import Newer, Recorded
from atoll.model.sandbox import SandboxState as S


class Fate(StrEnum):
    """What becomes of a directory."""

    ADOPT = "adopt"
    END = "end"
    LEAVE = "leave"
    DISCARD = "discard"


_OF_STATE = {
    S.CREATING: Fate.END,
    S.RUNNING: Fate.ADOPT,
    S.PAUSING: Fate.LEAVE,
    S.PAUSED: Fate.LEAVE,
    S.RESUMING: Fate.LEAVE,
    S.KILLING: Fate.END,
    S.ENDED: Fate.DISCARD,
}


def fate(found: Recorded | Newer | None) -> Fate:
    """The table above."""
    if found is None:
        return Fate.DISCARD
    return Fate.LEAVE if isinstance(found, Newer) else _OF_STATE[found.state.state]
