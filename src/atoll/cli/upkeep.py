"""Words of the commands for what crashes leave: `recover`, `gc`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from atoll.cli.words import AsJson, DataDir, errors_printed, print_json, settings_of

Yes = Annotated[bool, typer.Option("--yes/--dry-run", help="Do it, not only show it.")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    for command in (recover, gc):
        app.command()(command)


def recover(
    yes: Yes = False,
    team: Annotated[str | None, typer.Option(help="Who gets unknown sandboxes. [default: the default team]")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what the next start makes of what is there; accept a database that does not fit. Ends nothing."""
    with errors_printed():
        from atoll.cli import recover as recovery

        lines = recovery.recover(settings_of(data_dir), yes=yes, team=team)
        if as_json:
            print_json([asdict(line) for line in lines])
            return
        for line in lines:
            typer.echo(f"{line.subject}  {line.what}")
        if not yes and any(line.needs_yes for line in lines):
            typer.echo("nothing was changed: `atoll recover --yes` does it")


def gc(yes: Yes = False, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show what dead servers have left and what nobody needs; remove it. Sandboxes are never touched."""
    with errors_printed():
        from atoll.cli import gc as collection

        found = collection.collect(settings_of(data_dir), yes=yes)
        if as_json:
            print_json([{"kind": kind, "name": name} for kind, name in found])
            return
        for kind, name in found:
            typer.echo(f"{'removed' if yes else 'would remove'} {kind}: {name}")
        if found and not yes:
            typer.echo("nothing was changed: `atoll gc --yes` does it")
