"""`atoll connections`: what a sandbox reached or tried to, as the server of the data directory remembers it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from atoll.cli.api import get_of_sandbox
from atoll.cli.environment import client_environ
from atoll.config import Settings


def fetch(settings: Settings, sandbox_id: str, *, denied: bool, limit: int) -> list[dict[str, Any]]:
    """Oldest first. Raises Conflict (no server), NotFound, PlatformError."""
    query = {"limit": limit, **({"allowed": "false"} if denied else {})}
    found: list[dict[str, Any]] = get_of_sandbox(client_environ(settings), sandbox_id, "network/connections", query)
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line per connection or question."""
    table = Table(box=None, pad_edge=False)
    for title in ("TIME", "KIND", "TO", "NAME", "OUT", "IN", "VERDICT"):
        table.add_column(title, justify="right" if title in ("OUT", "IN") else "left", no_wrap=title != "VERDICT")
    for row in rows:
        verdict = row["verdict"] + (" (headers added)" if row["rewritten"] else "")
        target = f"{row['destinationAddress']}:{row['destinationPort']}" if row["destinationAddress"] else "-"
        style = None if row["allowed"] else "red"
        table.add_row(
            row["timestamp"][11:23], row["protocol"], target, row["name"] or "-",
            str(row["bytesOut"]), str(row["bytesIn"]), verdict, style=style,
        )  # fmt: skip
    Console().print(table)
