"""`atoll doctor --attack`: the suite against sandboxes of this machine, with a table of what was tried.

A platform of its own is attacked, never a server that somebody works with. Controls are not run here: they are the
attacks without a wall, on the user's own machine; the project's tests run them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from atoll.model.errors import BackendUnavailable, BuildFailed, InvalidRequest
from atoll.runtime.sandbox.embedded import EmbeddedPlatform
from atoll_attacks.attempt import Attempt, Family
from atoll_attacks.outside.network import fault, networks
from atoll_attacks.run import Range
from atoll_attacks.suite import attempts


@dataclass(frozen=True, slots=True)
class Result:
    """One attempt's end. `breach` None: blocked; `skipped` names why it was not tried."""

    attempt: Attempt
    breach: str | None = None
    skipped: str = ""


def run(environ: Mapping[str, str], family: str, *, as_json: bool) -> int:
    """Tries every attempt, or those of a family, and prints how each ended; 1 after a breach.

    Raises InvalidRequest for a family that is unknown, BackendUnavailable without root, BuildFailed.
    """
    results = attack(environ, family)
    if as_json:
        print(json.dumps(summary(results), indent=2))
    else:
        print_table(results)
    return 1 if any(result.breach for result in results) else 0


def attack(environ: Mapping[str, str], only: str = "") -> list[Result]:
    """As `run`, without printing the results; progress goes to standard error."""
    if only and only not in set(Family):
        raise InvalidRequest(f"no family of attacks is called {only!r}; there are {', '.join(Family)}")
    if os.geteuid() != 0:
        raise BackendUnavailable("attacks are decided by canaries that only root can make", hint="run it as root")
    _build_base(environ)
    chosen = [one for one in attempts() if not only or one.family == only]
    egress = [one for one in chosen if one.family is Family.EGRESS]
    console = Console(stderr=True)
    results: list[Result] = []
    if others := [one for one in chosen if one.family is not Family.EGRESS]:
        with EmbeddedPlatform(environ) as platform, _variables(platform.environ):
            results += _run(others, console, platform.home)
    if egress:
        reason = fault()
        results += [Result(one, skipped=reason) for one in egress] if reason else _run_egress(egress, console, environ)
    return results


def _build_base(environ: Mapping[str, str]) -> None:
    command = [sys.executable, "-m", "atoll", "template", "build", "base"]
    if subprocess.run(command, env=dict(environ), stdout=sys.stderr, check=False).returncode != 0:
        raise BuildFailed("the template `base`, which is attacked, could not be built; see above")


@contextmanager
def _variables(more: Mapping[str, str]) -> Iterator[None]:
    """Within the block these are in `os.environ`, where the SDK looks for its platform."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _run(chosen: list[Attempt], console: Console, data_dir: Path | None) -> list[Result]:
    tier = _tier()
    console.print(f"sandboxes of the tier {tier} are attacked (ATOLL_ISOLATION names another)", highlight=False)
    skipped = [Result(one, skipped=dict(one.not_in)[tier]) for one in chosen if tier in dict(one.not_in)]
    with Range(data_dir=data_dir) as place:
        return skipped + _tried(place, [one for one in chosen if tier not in dict(one.not_in)], console)


def _run_egress(chosen: list[Attempt], console: Console, environ: Mapping[str, str]) -> list[Result]:
    """In networks of the run's own, where canaries are what may be reached."""
    with tempfile.TemporaryDirectory(prefix="atoll-attacks-") as directory, networks(Path(directory)) as around:
        platform = EmbeddedPlatform({**environ, **around.settings}, wrap=around.enter)
        with platform, around.forward(platform.url) as url:
            names = ("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL")
            variables = {**platform.environ, **dict.fromkeys(names, url)}
            with _variables(variables), Range(networks=around, data_dir=platform.home) as place:
                return _tried(place, chosen, console)


def _tried(place: Range, chosen: list[Attempt], console: Console) -> list[Result]:
    """With a line on the terminal that says how far it is."""
    ended = 0
    with console.status("sandboxes are made") as status:

        def tell(name: str) -> None:
            nonlocal ended
            ended += 1
            status.update(f"{min(ended, len(chosen))} of {len(chosen)}: {name}")

        outcomes = place.attack_all(chosen, tell=tell)
    return [Result(one, outcomes[one.name][0].breach) for one in chosen]


def _tier() -> str:
    """The tier of the platform, as a sandbox of it shows."""
    from e2b import Sandbox

    with Sandbox.create("base", timeout=60) as sandbox:
        release = sandbox.commands.run("dmesg 2>/dev/null | head -1; cat /proc/version", user="root").stdout
    return "gvisor" if "gVisor" in release or "Linux version 4.4.0 " in release else "namespaces"


def summary(results: list[Result]) -> dict[str, Any]:
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
    """For people: what was tried in a line each, breaches last so that nobody overlooks them, what was not in one line
    for each reason, and the counts of each family.
    """
    console = Console()
    tried = [one for one in results if not one.skipped]
    table = Table("", "family", "attempt", "to", box=None, pad_edge=False)
    for column in table.columns[:2]:
        column.no_wrap = True
    for one in sorted(tried, key=lambda one: (bool(one.breach), list(Family).index(one.attempt.family))):
        mark = "[red]BREACH[/red]" if one.breach else "[green]blocked[/green]"
        table.add_row(mark, str(one.attempt.family), one.attempt.name, one.breach or one.attempt.goal)
    console.print(table)
    reasons: dict[tuple[str, Family], int] = {}
    for one in results:
        if one.skipped:
            reasons[one.skipped, one.attempt.family] = reasons.get((one.skipped, one.attempt.family), 0) + 1
    for (reason, family), count in reasons.items():
        console.print(f"[dim]not tried: {count} of {family}: {reason}[/dim]", highlight=False)
    counts = Table("family", "blocked", "of", box=None, pad_edge=False)
    for family in Family:
        ours = [one for one in tried if one.attempt.family is family]
        if ours:
            counts.add_row(str(family), str(sum(not one.breach for one in ours)), str(len(ours)))
    console.print()
    console.print(counts)
    found = summary(results)
    console.print(
        f"\n{found['blocked']} blocked, {found['breaches']} breaches, {len(results) - len(tried)} not tried; "
        f"{len(results)} attempts"
    )
