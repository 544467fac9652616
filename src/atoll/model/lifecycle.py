"""The lifecycle of a sandbox as one pure table.

    CREATING ──► RUNNING ──► PAUSING ──► PAUSED ──► RESUMING ──► RUNNING
        │           │           │           │           │
        └───────────┴───────────┴─────┬─────┴───────────┘
                                      ▼
                                   KILLING ──► ENDED        (any live state may also fall to ENDED: the guest died)

A transition is written to the store before it is begun (…ING) and after it is done; start-up finishes or rolls back
what it finds half-done.
"""

from __future__ import annotations

from atoll.model.errors import Conflict
from atoll.model.sandbox import SandboxRecord
from atoll.model.sandbox import SandboxState as S

TRANSITIONS: dict[S, frozenset[S]] = {
    S.CREATING: frozenset({S.RUNNING, S.KILLING, S.ENDED}),
    S.RUNNING: frozenset({S.PAUSING, S.KILLING, S.ENDED}),
    S.PAUSING: frozenset({S.PAUSED, S.RUNNING, S.KILLING, S.ENDED}),
    S.PAUSED: frozenset({S.RESUMING, S.KILLING, S.ENDED}),
    S.RESUMING: frozenset({S.RUNNING, S.PAUSED, S.KILLING, S.ENDED}),
    S.KILLING: frozenset({S.ENDED}),
    S.ENDED: frozenset(),
}


def check_transition(current: S, target: S) -> None:
    """Raises Conflict when a sandbox in `current` may not become `target`."""
    if target not in TRANSITIONS[current]:
        raise Conflict(f"a {current.value} sandbox cannot become {target.value}")


_SHOWN = {state: S.PAUSED if state in (S.PAUSED, S.RESUMING) else S.RUNNING for state in S}


def shown_state(record: SandboxRecord) -> S:
    """RUNNING or PAUSED, which is all that a caller sees: it runs until it is paused, and the reverse."""
    return _SHOWN[record.state]
