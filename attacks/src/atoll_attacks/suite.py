"""Every attempt there is."""

from __future__ import annotations

from atoll_attacks import egress, escape, files, guest, posture, posture_gvisor, resources, shared_limits
from atoll_attacks.attempt import Attempt


def attempts() -> tuple[Attempt, ...]:
    """In the order in which they are tried; names are unique."""
    return (
        *posture.ATTEMPTS,
        *posture_gvisor.ATTEMPTS,
        *escape.ATTEMPTS,
        *guest.ATTEMPTS,
        *files.ATTEMPTS,
        *resources.ATTEMPTS,
        *egress.ATTEMPTS,
        *shared_limits.ATTEMPTS,
    )
