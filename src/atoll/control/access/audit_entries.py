"""Which requests are audited, and as what."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import unquote

from atoll.control.access.audit import AuditLog
from atoll.control.access.auth import digest_of
from atoll.control.access.gate import Answered

_READING = frozenset({"GET", "HEAD"})
_LONGEST = 200


class Audited(StrEnum):
    """How much: nothing, what changes something or may, everything that a key was presented for."""

    OFF = "off"
    CHANGES = "changes"
    ALL = "all"


class Audit:
    """Hands requests to the log. Those without a valid key are left out: a stranger must not fill it."""

    def __init__(self, log: AuditLog, audited: Audited) -> None:
        self._log = log
        self._audited = audited

    def answered(self, one: Answered) -> None:
        """Never blocks, never raises."""
        if one.caller is None or self._audited is Audited.OFF:
            return
        if self._audited is Audited.CHANGES and one.method in _READING:
            return
        self._log.note(
            {
                "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                "request": one.request_id,
                "team": one.caller.team_id,
                "key": f"sha256:{digest_of(one.caller.key)[:16]}",
                "action": f"{one.method} {one.route}",
                "target": {name: unquote(str(value))[:_LONGEST] for name, value in one.target.items()},
                "status": one.status,
                "ms": round(one.seconds * 1000, 1),
            }
        )
