"""`atoll doctor --attack`: finds the attack suite, a distribution of its own, and lets it run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Protocol

from atoll.config import Settings
from atoll.model.errors import BackendUnavailable

GROUP = "atoll.attacks"


class AttackSuite(Protocol):
    """What the entry point `suite` of the group `atoll.attacks` leads to."""

    def __call__(self, environ: Mapping[str, str], family: str, *, as_json: bool) -> int:
        """Attacks sandboxes of a platform of its own and prints how it ended. The exit status: 1 after a breach.

        `family` names the one family to try; "" means all. Raises AtollError.
        """
        ...


def find() -> AttackSuite:
    """The installed suite. Raises BackendUnavailable with what to install."""
    for point in entry_points(group=GROUP, name="suite"):
        suite: AttackSuite = point.load()
        return suite
    raise BackendUnavailable(
        "the attack suite is not installed",
        hint="pip install 'atoll[attacks]', or in a checkout: pip install ./attacks",
    )


def attack(settings: Settings, family: str, *, as_json: bool) -> int:
    """Runs the suite on templates of the data directory. Raises BackendUnavailable, InvalidRequest."""
    suite = find()
    return suite({**os.environ, "ATOLL_DATA_DIR": str(settings.data_dir)}, family, as_json=as_json)
