"""Words of `atoll service`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from atoll.cli import service
from atoll.cli.words import AsJson, DataDir, errors_printed, print_json, settings_of

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and do nothing.")]
Name = Annotated[str, typer.Option(help="What the unit is called.")]

app = typer.Typer(
    help=f"The server as a unit of systemd. {(service.__doc__ or '').partition(chr(10) + chr(10))[2]}",
    no_args_is_help=True,
)


def _data_dir(chosen: Path | None) -> Path | None:
    """As root not below /root, unless it is named."""
    if chosen is None and "ATOLL_DATA_DIR" not in os.environ and os.geteuid() == 0:
        return service.SYSTEM_DATA_DIR
    return chosen


def _place(name: str) -> service.Place:
    if not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        raise typer.BadParameter("letters, digits, `-` and `_`", param_hint="--name")
    return service.Place.of(name, os.environ, as_root=os.geteuid() == 0)


def _do(steps: Sequence[service.Step], *, dry_run: bool) -> None:
    for step in steps:
        typer.echo(f"{'would ' if dry_run else ''}{step.what}")
        if dry_run and step.text is not None and step.mode == 0o644:
            typer.echo("".join(f"    {line}\n" for line in step.text.splitlines()), nl=False)
        elif not dry_run:
            service.carry_out(step)


@app.command()
def install(dry_run: DryRun = False, name: Name = "atoll", data_dir: DataDir = None) -> None:
    """Write the unit, enable it and start it, now and at every boot. Run it again after an upgrade."""
    with errors_printed():
        settings, place = settings_of(_data_dir(data_dir)), _place(name)
        _do(service.install_steps(place, settings.data_dir, os.environ), dry_run=dry_run)
        if not dry_run:
            typer.echo(f'clients: eval "$(atoll env --data-dir {settings.data_dir})"')


@app.command()
def uninstall(dry_run: DryRun = False, name: Name = "atoll") -> None:
    """Stop the server and remove the unit. Sandboxes that run, data and settings stay."""
    with errors_printed():
        place = _place(name)
        _do(service.uninstall_steps(place), dry_run=dry_run)
        typer.echo(f"kept: the data directory, and {place.settings}")


@app.command()
def status(name: Name = "atoll", data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Whether it is installed, enabled and active, and whether a server answers; exit code 1 if none does."""
    with errors_printed():
        found = service.status(_place(name), settings_of(_data_dir(data_dir)))
        if as_json:
            print_json(found)
        for subject, what in () if as_json else found.items():
            typer.echo(f"{subject}: {what}")
        raise typer.Exit(0 if found["server"].startswith("runs") else 1)
