"""The environment of everything that a runtime starts in its sandbox: its variables, and git's identity."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping

from atoll.runtime.sandbox.box import E2BBox

QUIET_PAGERS = {"PAGER": "cat", "GIT_PAGER": "cat", "SYSTEMD_PAGER": "cat", "MANPAGER": "cat"}
"""An agent cannot scroll: whatever would open a pager prints instead."""

_log = logging.getLogger("atoll.runtime")


class Environment:
    """`variables` are those that this runtime has set so far, with upper-case names."""

    def __init__(self, box: E2BBox) -> None:
        self._box = box
        self.variables: dict[str, str] = {}

    @property
    def of_process(self) -> dict[str, str]:
        """What a new process gets."""
        return {**QUIET_PAGERS, **self.variables}

    def set(self, variables: Mapping[str, str]) -> None:
        """For all that is started from now on, and, through ~/.bashrc, for shells of runtimes that attach later.

        The last line for a name counts there. Raises RuntimeError.
        """
        self.variables.update(variables)
        if not variables:
            return
        lines = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
        done = self._box.execute(f"printf '%s\\n' {shlex.quote(lines)} >> ~/.bashrc")
        if done.exit_code != 0:
            raise RuntimeError(f"Failed to add env vars {sorted(variables)} to .bashrc: {done.output.strip()}")

    def set_git_identity(self, name: str, email: str) -> None:
        """For commits of the agent; a template without git is left as it is. A failure is logged."""
        done = self._box.execute(
            f"! command -v git >/dev/null || {{ git config --global user.name {shlex.quote(name)} && "
            f"git config --global user.email {shlex.quote(email)}; }}"
        )
        if done.exit_code != 0:
            _log.warning("git's identity could not be set: %s", done.output.strip())
