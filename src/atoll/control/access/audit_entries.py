"""Which requests are audited, and as what: each as an entry, or where a team has had its share, in a summary."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import unquote

from atoll.control.access.audit import AuditLog
from atoll.control.access.audit_shares import AuditShares, Summary
from atoll.control.access.auth import digest_of
from atoll.control.access.gate import Answered

_READING = frozenset({"GET", "HEAD"})
_LONGEST = 200
_BESIDE_TARGET = 450
"""Bytes of an entry without its target."""
SUMMARY_AFTER_S = 300.0


class Audited(StrEnum):
    """How much: nothing, what changes something or may, everything that a key was presented for."""

    OFF = "off"
    CHANGES = "changes"
    ALL = "all"


class Audit:
    """Hands requests to the log. Those without a valid key are left out: a stranger must not fill it.

    Args:
        later: calls something after so many seconds; None: the running loop does.
    """

    def __init__(
        self,
        log: AuditLog,
        audited: Audited,
        clock: Callable[[], float] = time.monotonic,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._log = log
        self._audited = audited
        self._shares = AuditShares(log.most_bytes, clock)
        self._later = later
        self._summaries: dict[str, Summary] = {}

    def answered(self, one: Answered) -> None:
        """Never blocks, never raises."""
        if one.caller is None or self._audited is Audited.OFF:
            return
        if self._audited is Audited.CHANGES and one.method in _READING:
            return
        team, key, action = one.caller.team_id, f"sha256:{digest_of(one.caller.key)[:16]}", f"{one.method} {one.route}"
        target = {name: unquote(str(value))[:_LONGEST] for name, value in one.target.items()}
        if self._shares.take(team, key, _BESIDE_TARGET + len(json.dumps(target))):
            self._log.note(
                {
                    "at": _now(),
                    "request": one.request_id,
                    "team": team,
                    "key": key,
                    "action": action,
                    "target": target,
                    "status": one.status,
                    "ms": round(one.seconds * 1000, 1),
                }
            )
            return
        if not self._summaries:
            (self._later or asyncio.get_running_loop().call_later)(SUMMARY_AFTER_S, self.flush)
        self._summaries.setdefault(team, Summary(_now())).add(key, action, one.status)

    def flush(self) -> None:
        """Notes what was only counted so far."""
        summaries, self._summaries = self._summaries, {}
        for team, summary in summaries.items():
            self._log.note(summary.entry(team, _now()))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
