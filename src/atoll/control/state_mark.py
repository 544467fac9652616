"""Recognises a database that is older than what was done with it: one that was deleted, or put back from a copy.

    CONTROL_DIR/state-mark    the number of an event that the database has had, and which it never loses

It lies beside the database but is no part of it. A server that finds its database behind the mark does not start: it
would take sandboxes for ended, their timeouts for passed and snapshots for unused that are none of these. A number is
written once the database has that event on the machine's disk: a power cut leaves no mark that it is behind.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import structlog

from atoll.control.clock import Clock
from atoll.control.store import Store
from atoll.model.errors import StateLost

EVERY_S = 60.0
FIRST_S = 0.5
HINT = "put the right one back, or accept this one: `atoll recover` says what that means, and `--yes` does it"

_log = structlog.get_logger("atoll.control")


class StateMark:
    """`check` before anything is settled, `begin` after that; `run` keeps it."""

    def __init__(self, path: Path, store: Store, clock: Clock) -> None:
        self._path = path
        self._store = store
        self._clock = clock

    async def check(self) -> bool:
        """Whether the database is known to be the one that was used before: not without a mark.

        Raises StateLost: it is another one.
        """
        wanted, found = read(self._path), await self._store.events.newest()
        if found < (wanted or 0):
            raise StateLost(
                f"the database is older than what this server has done: it ends at event {found}, {wanted} was seen",
                hint=HINT,
            )
        return wanted is not None

    def begin(self) -> None:
        """From now on this database is the one. Raises OSError."""
        if read(self._path) is None:
            write(self._path, 0)

    async def run(self) -> None:
        """Until it is cancelled. The first event is marked at once: from then on there is something to lose."""
        newest = 0
        while True:
            try:
                newest = await self._store.events.newest()
                if newest > (read(self._path) or 0):
                    await self._store.settle()
                    write(self._path, newest)
            except Exception:
                _log.exception("control.mark_not_written")
            await self._clock.sleep(EVERY_S if newest else FIRST_S)


def read(path: Path) -> int | None:
    """None: there is none yet."""
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def write(path: Path, number: int) -> None:
    """Raises OSError."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(f"{number}\n")
    draft.replace(path)
