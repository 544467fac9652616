"""Every attempt there is."""

from __future__ import annotations

from atoll.attacks import escape, guest, posture
from atoll.attacks.attempt import Attempt


def attempts() -> tuple[Attempt, ...]:
    """In the order in which they are tried; names are unique."""
    return (*posture.ATTEMPTS, *escape.ATTEMPTS, *guest.ATTEMPTS)
