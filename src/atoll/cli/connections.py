"""`atoll connections`: what a sandbox reached or tried to, as the server of the data directory remembers it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlencode

from rich.console import Console
from rich.table import Table

from atoll.cli.environment import client_environ
from atoll.config import Settings
from atoll.model.errors import NotFound, PlatformError

_WITHIN_S = 30


def fetch(settings: Settings, sandbox_id: str, *, denied: bool, limit: int) -> list[dict[str, Any]]:
    """Oldest first. Raises Conflict (no server), NotFound, PlatformError."""
    environ = client_environ(settings)
    query = {"limit": limit, **({"allowed": "false"} if denied else {})}
    url = f"{environ['E2B_API_URL']}/sandboxes/{quote(sandbox_id, safe='')}/network/connections?{urlencode(query)}"
    request = urllib.request.Request(url, headers={"X-API-Key": environ["E2B_API_KEY"]})
    try:
        with urllib.request.urlopen(request, timeout=_WITHIN_S) as answer:
            found: list[dict[str, Any]] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise NotFound(
                f"sandbox {sandbox_id!r} not found", hint="`e2b sandbox list` shows those that run"
            ) from None
        raise PlatformError(f"the server answered {error.code}: {error.read(500).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise PlatformError(f"the server does not answer: {error}") from error


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
