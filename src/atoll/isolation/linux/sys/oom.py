"""The OOM killer's order: the server's processes come last, what runs for others is ordinary again before it runs.

A score is inherited by every child. Raising it needs no right, lowering it CAP_SYS_RESOURCE.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

PROTECTED = -800
"""Of the server's processes: after all that has no protection, before what the system itself holds dearer (-1000)."""

_ORDINARY = 0


def protect() -> bool:
    """The OOM killer spares this process and its later children while it finds others. False: not permitted here."""
    if score_of() <= PROTECTED:
        return True
    try:
        _file("self").write_text(str(PROTECTED))
    except OSError:
        return False
    return True


def make_ordinary(pid: int | None = None) -> None:
    """Takes inherited protection from `pid`, by default this process. A score that is ordinary, or higher, stays."""
    with contextlib.suppress(OSError):  # it has ended
        if score_of(pid) < _ORDINARY:
            _file(pid or "self").write_text(str(_ORDINARY))


def score_of(pid: int | None = None) -> int:
    """-1000 (never chosen) to 1000 (chosen first). Raises OSError: no such process."""
    return int(_file(pid or "self").read_text())


def _file(process: int | str) -> Path:
    return Path(f"/proc/{process}/oom_score_adj")
