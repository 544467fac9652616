"""What a start does with each sandbox's directory that it finds: a pure decision (`fate`), and the reading before it.

never finished                 discard
CREATING, KILLING              end what is left of it, then discard: nobody was told of it, or it was to end
RUNNING                        adopt
PAUSING, PAUSED, RESUMING      leave: no process to adopt, and nothing to lose by waiting
ENDED                          discard
of a newer version             leave, with its processes
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from atoll.isolation import directory
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


def look(sandboxes: Path) -> dict[str, Recorded | Newer | None]:
    """Sandbox id → what its directory says. Raises OSError for a record that is there and cannot be read."""
    return {path.name: directory.read(path) for path in sorted(sandboxes.iterdir()) if path.is_dir()}
