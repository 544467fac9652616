"""Which entries of a log a caller gets: pure.

Cursors are Unix milliseconds, E2B's. Forward: from the cursor on, oldest first. Backward: up to the cursor, newest
first. Both include the cursor's own millisecond, in which more entries may lie than the page before had room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atoll.model.logs import LogEntry, LogLevel

MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class LogQuery:
    """`level` is the lowest that is shown; `search` is a case-sensitive piece of the message."""

    cursor_ms: int | None = None
    backward: bool = False
    level: LogLevel = LogLevel.DEBUG
    search: str = ""
    limit: int = MAX_LIMIT


def select(entries: Sequence[LogEntry], query: LogQuery) -> list[LogEntry]:
    """The page of `query` out of a whole log (oldest first), in the query's order."""
    ordered = reversed(entries) if query.backward else iter(entries)
    found: list[LogEntry] = []
    for entry in ordered:
        if len(found) >= query.limit:
            break
        if _matches(entry, query):
            found.append(entry)
    return found


def _matches(entry: LogEntry, query: LogQuery) -> bool:
    if query.cursor_ms is not None:
        at = round(entry.at.timestamp() * 1000)
        if at > query.cursor_ms if query.backward else at < query.cursor_ms:
            return False
    return entry.level.reaches(query.level) and query.search in entry.message
