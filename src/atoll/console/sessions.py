"""Who is logged in: opaque tokens to callers, in memory. A server that starts anew has none: people log in again.

The browser holds the token, never the key. Kept here under its digest, with a second token that forms must carry.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

from atoll.control.access.auth import Caller

LIFETIME_S = 12 * 3600.0
"""From the log-in, whatever is done meanwhile."""
MAX_PER_KEY = 16
MAX_SESSIONS = 2000
"""Beyond either the oldest ends."""


@dataclass(frozen=True, slots=True)
class Session:
    """`csrf`: what every request that changes something must carry beside the cookie."""

    caller: Caller
    csrf: str = field(repr=False)
    begun_at: float


class Sessions:
    """`clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: dict[str, Session] = {}
        """By the token's digest, oldest first."""

    def begin(self, caller: Caller) -> str:
        """The new session's token."""
        self._forget_expired()
        own = [digest for digest, one in self._open.items() if one.caller.key == caller.key]
        surplus = own[: max(0, len(own) - MAX_PER_KEY + 1)]
        for digest in surplus or list(self._open)[: max(0, len(self._open) - MAX_SESSIONS + 1)]:
            del self._open[digest]
        token = secrets.token_urlsafe(32)
        self._open[_digest(token)] = Session(caller, secrets.token_urlsafe(32), self._clock())
        return token

    def find(self, token: str) -> Session | None:
        """None: it was never begun, has ended or is too old."""
        self._forget_expired()
        return self._open.get(_digest(token))

    def end(self, token: str) -> None:
        """Idempotent."""
        self._open.pop(_digest(token), None)

    def _forget_expired(self) -> None:
        now = self._clock()
        for digest, one in list(self._open.items()):
            if now - one.begun_at < LIFETIME_S:
                break
            del self._open[digest]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
