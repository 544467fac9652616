"""Environment variables of a runtime: which names a shell takes, and those that our own environment hands on."""

from __future__ import annotations

import re
from collections.abc import Mapping

from atoll.runtime.config import SandboxConfig

_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")
_LEAD = "SANDBOX_ENV_"


def checked_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables with upper-case names, as OpenHands sets them. Raises ValueError for what no shell takes."""
    chosen = {name.upper(): str(value) for name, value in variables.items()}
    for name, value in chosen.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of an environment variable")
        if "\0" in value:
            raise ValueError(f"the value of {name} contains a null byte")
    return chosen


def variables_of_environ(environ: Mapping[str, str], sandbox: SandboxConfig) -> dict[str, str]:
    """SANDBOX_ENV_X of our own environment is X in the sandbox."""
    found = {name.removeprefix(_LEAD): value for name, value in environ.items() if name.startswith(_LEAD)}
    if sandbox.enable_auto_lint:
        found["ENABLE_AUTO_LINT"] = "true"
    return found
