"""What the commands of `atoll` have in common: options, output, and how a failure ends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from atoll.config import Settings
from atoll.model.errors import AtollError

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Where state, sandboxes and templates live.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def settings_of(data_dir: Path | None) -> Settings:
    environ: Mapping[str, str] = os.environ
    if data_dir is not None:
        environ = {**environ, "ATOLL_DATA_DIR": str(data_dir)}
    return Settings.from_environ(environ)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


@contextmanager
def errors_printed() -> Iterator[None]:
    """Expected failures end with their message and exit code 1, not with a traceback."""
    try:
        yield
    except AtollError as error:
        _fail(str(error))
    except OSError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _fail(message: str) -> NoReturn:
    typer.echo(f"atoll: {message}", err=True)
    raise typer.Exit(1)
