"""Finds isolation backends by entry point (group `atoll.isolation`), ours like anyone else's."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

from atoll.isolation.base import BackendConfig, IsolationBackend
from atoll.model.errors import BackendUnavailable

GROUP = "atoll.isolation"

BackendFactory = Callable[[BackendConfig], IsolationBackend]


def names() -> list[str]:
    """Every tier that is installed, whether or not it works here."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load(name: str) -> BackendFactory:
    """The factory of a tier. Raises BackendUnavailable for an unknown name, saying which are known."""
    for point in entry_points(group=GROUP):
        if point.name == name:
            factory: BackendFactory = point.load()
            return factory
    raise BackendUnavailable(
        f"isolation tier {name!r} is not installed", hint=f"installed: {', '.join(names()) or 'none'}"
    )
