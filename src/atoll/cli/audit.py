"""`atoll audit`: the log of what API keys did, read from the data directory, whether a server runs or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from atoll.config import Settings
from atoll.control.access import audit
from atoll.server.plan import control_dir


def export(settings: Settings, *, since: str = "", team: str = "", sandbox: str = "") -> Iterator[dict[str, Any]]:
    """The entries, oldest first. `since`: an ISO time, or its beginning. Raises InvalidRequest, OSError."""
    for entry in audit.entries(control_dir(settings.data_dir) / audit.DIRECTORY):
        if str(entry.get("at", "")) < since or (team and entry.get("team") != team):
            continue
        if sandbox and sandbox not in entry.get("target", {}).values():
            continue
        yield entry


def verify(settings: Settings, head: str | None) -> dict[str, Any]:
    """What was found. Raises InvalidRequest: the chain is broken, OSError."""
    return asdict(audit.verify(control_dir(settings.data_dir) / audit.DIRECTORY, head))
