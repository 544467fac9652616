"""Words of the commands for daily work with sandboxes: `ls`, `exec`, `shell`, `cp`, `logs`, `kill`."""

from __future__ import annotations

from typing import Annotated

import typer

from atoll.cli.words import AsJson, DataDir, errors_printed, print_json, settings_of
from atoll.model.errors import InvalidRequest

SandboxId = Annotated[str, typer.Argument(metavar="SANDBOX", help="The sandbox's id, as `atoll ls` shows it.")]
User = Annotated[str | None, typer.Option("--user", "-u", help="As whom. [default: the template's user]")]
Cwd = Annotated[str | None, typer.Option("--cwd", "-w", help="Where. [default: the user's home]")]


def register(app: typer.Typer) -> None:
    """Adds the commands to `app`."""
    app.command("ls")(list_sandboxes)
    app.command("exec", context_settings={"allow_interspersed_args": False})(execute)
    for command in (shell, cp, logs, kill):
        app.command()(command)


def list_sandboxes(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the sandboxes that run or are paused."""
    with errors_printed():
        from atoll.cli import sandboxes

        with sandboxes.platform(settings_of(data_dir)):
            found = sandboxes.rows()
        print_json(found) if as_json else sandboxes.print_rows(found)


def execute(
    sandbox_id: SandboxId,
    command: Annotated[list[str], typer.Argument(help="One word: a shell line; several: a program and arguments.")],
    user: User = None,
    cwd: Cwd = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds after which it is ended; 0: never.")] = 0,
    data_dir: DataDir = None,
) -> None:
    """Run a command in a sandbox with this terminal's input and output; returns its exit code."""
    with errors_printed():
        from atoll.cli import sandboxes

        if command[0] == "--":  # as one writes it for other such commands
            command = command[1:]
        if not command:
            raise InvalidRequest("name the command: atoll exec SANDBOX COMMAND…")
        envs = dict(_assignment(one) for one in env or ())
        with sandboxes.platform(settings_of(data_dir)):
            code = sandboxes.execute(sandbox_id, command, user=user, cwd=cwd, envs=envs, timeout_s=timeout)
        raise typer.Exit(code)


def shell(sandbox_id: SandboxId, user: User = None, cwd: Cwd = None, data_dir: DataDir = None) -> None:
    """Open a terminal in a sandbox."""
    with errors_printed():
        from atoll.cli import sandboxes

        with sandboxes.platform(settings_of(data_dir)):
            raise typer.Exit(sandboxes.shell(sandbox_id, user=user, cwd=cwd))


def cp(
    source: Annotated[str, typer.Argument(help="A path, or SANDBOX:PATH.")],
    target: Annotated[str, typer.Argument(help="SANDBOX:PATH, or a path.")],
    data_dir: DataDir = None,
) -> None:
    """Copy a file or a directory into a sandbox or out of it. A directory keeps its name."""
    with errors_printed():
        from atoll.cli import copy, sandboxes

        with sandboxes.platform(settings_of(data_dir)):
            copy.copy(source, target)


def logs(
    sandbox_id: SandboxId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sandbox ends.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many lines.")] = 200,
    data_dir: DataDir = None,
) -> None:
    """Print a sandbox's log, also of one that has ended lately."""
    with errors_printed():
        from atoll.cli import sandboxes

        with sandboxes.platform(settings_of(data_dir)):
            for line in sandboxes.logs(sandbox_id, follow=follow, limit=limit):
                typer.echo(line)


def kill(
    sandbox_ids: Annotated[list[str] | None, typer.Argument(metavar="[SANDBOX]...", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All sandboxes of the key's team.")] = False,
    data_dir: DataDir = None,
) -> None:
    """End sandboxes; 1 when one was not there."""
    with errors_printed():
        from atoll.cli import sandboxes

        if bool(sandbox_ids) == everything:
            raise InvalidRequest("name sandboxes, or say --all")
        with sandboxes.platform(settings_of(data_dir)):
            names = sandbox_ids or [row["sandbox_id"] for row in sandboxes.rows()]
            missing = set(sandboxes.kill(names))
        for name in names:
            typer.echo(f"{name}: {'not found' if name in missing else 'ended'}", err=name in missing)
        raise typer.Exit(1 if missing and not everything else 0)


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidRequest(f"--env takes NAME=VALUE, not {text!r}")
    return name, value
