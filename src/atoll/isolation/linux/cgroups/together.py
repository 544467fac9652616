"""What all sandboxes of a server together may use of memory and processes, whatever the limits of each add up to."""

from __future__ import annotations

import structlog

from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.model.sandbox import Limits

_log = structlog.get_logger("atoll.isolation")


def bound_all(cgroups: Cgroups, at_once: Limits | None, tier: str) -> None:
    """Sets it where groups allow, and logs where not. None: no bound. Every tier sets the same."""
    if at_once is None:
        return
    if missing := cgroups.bound_all(at_once):
        _log.warning("tier.sandboxes_not_bounded_together", tier=tier, lacking=missing)
