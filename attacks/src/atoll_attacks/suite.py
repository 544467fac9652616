"""Every attempt there is."""

from __future__ import annotations

from atoll_attacks import (
    agent,
    egress,
    escape,
    files,
    guest,
    keys,
    posture,
    posture_gvisor,
    resources,
    shared_limits,
    strangers,
)
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
        resources.TOGETHER,
        *egress.ATTEMPTS,
        *shared_limits.ATTEMPTS,
        *strangers.ATTEMPTS,
        *keys.ATTEMPTS,
        *agent.ATTEMPTS,
    )
