"""`atoll doctor --attack`: the attack suite against sandboxes of this machine, with a table of what was tried.

An embedded platform of its own is attacked, never a server that somebody works with. Controls are not run here: they
are the attacks without a wall, on the user's own machine; the project's tests run them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from atoll.attacks import Attempt, Family, Range, attempts
from atoll.cli.run import ensure, platform_environ
from atoll.config import Settings
from atoll.model.errors import BackendUnavailable, InvalidRequest


@dataclass(frozen=True, slots=True)
class Result:
    """One attempt's end. `breach` None: blocked; `skipped` names why it was not tried."""

    attempt: Attempt
    breach: str | None = None
    skipped: str = ""


def attack(settings: Settings, only: str = "") -> list[Result]:
    """Tries every attempt (or those of a family); tells each as it ends. Raises BackendUnavailable, InvalidRequest."""
    if only and only not in set(Family):
        raise InvalidRequest(f"no family of attacks is called {only!r}; there are {', '.join(Family)}")
    if os.geteuid() != 0:
        raise BackendUnavailable("attacks are decided by canaries that only root can make", hint="run it as root")
    console = Console(stderr=True)
    with platform_environ(settings, embedded=True):
        ensure("base")
        chosen = [one for one in attempts() if not only or one.family == only]
        # Where the embedded platform of this process has its data: what it has written down, judges look up.
        home = next((settings.data_dir / "embedded").glob(f"{os.getpid()}-*"), None)
        return list(_run(chosen, console, home))


def _run(chosen: list[Attempt], console: Console, data_dir: Path | None) -> Iterator[Result]:
    tier = _tier()
    with Range(data_dir=data_dir) as place:
        for number, attempt in enumerate(chosen, 1):
            if reason := dict(attempt.not_in).get(tier):
                yield Result(attempt, skipped=reason)
                continue
            console.print(f"[dim]{number}/{len(chosen)} {attempt.name}[/dim]", end="\r", highlight=False)
            yield Result(attempt, place.attack(attempt).breach)


def _tier() -> str:
    """The tier of the platform, told by a sandbox of it."""
    from e2b import Sandbox

    with Sandbox.create("base", timeout=60) as sandbox:
        release = sandbox.commands.run("dmesg 2>/dev/null | head -1; cat /proc/version", user="root").stdout
    return "gvisor" if "gVisor" in release or "Linux version 4.4.0 " in release else "namespaces"


def as_json(results: list[Result]) -> dict[str, Any]:
    """For scripts."""
    return {
        "blocked": sum(not one.breach and not one.skipped for one in results),
        "breaches": sum(bool(one.breach) for one in results),
        "attempts": [
            {"name": one.attempt.name, "family": one.attempt.family, "goal": one.attempt.goal,
             "breach": one.breach, "skipped": one.skipped or None}
            for one in results
        ],
    }  # fmt: skip


def print_table(results: list[Result]) -> None:
    """For people: every attempt in a line, breaches last so that nobody overlooks them, then the count."""
    console = Console()
    table = Table("", "family", "attempt", "to", box=None, pad_edge=False)
    for one in sorted(results, key=lambda one: bool(one.breach)):
        mark = "[red]BREACH[/red]" if one.breach else "[dim]skipped[/dim]" if one.skipped else "[green]blocked[/green]"
        table.add_row(mark, str(one.attempt.family), one.attempt.name, one.breach or one.skipped or one.attempt.goal)
    console.print(table)
    found = as_json(results)
    skipped = len(results) - found["blocked"] - found["breaches"]
    tried = f"{found['blocked']} blocked, {found['breaches']} breaches"
    console.print(f"\n{tried}, {skipped} of another tier and not tried; {len(results)} attempts")
