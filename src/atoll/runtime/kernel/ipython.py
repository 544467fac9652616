"""Cells on the sandbox's Jupyter kernel through the published code interpreter, as OpenHands shows them.

Owns the order of outputs, images as data URLs, the time limit, the kernel's working directory and its start-up code.
The kernel's state lives until the kernel dies (of too little memory, or because the code ended it): the next cell then
runs on a fresh one that is prepared as the first was, and says so.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from e2b import SandboxException, TimeoutException
from e2b_code_interpreter import Sandbox

from atoll.runtime.errors import LOST, AgentRuntimeDisconnectedError, AgentRuntimeError

NO_OUTPUT = "[Code executed successfully with no output]"
RESTARTED = (
    "[The kernel had ended and a fresh one ran this cell: the variables and imports of earlier cells are lost. "
    "Start-up code and working directory are restored.]"
)
_QUIET_S = 60.0
_log = logging.getLogger("atoll.runtime")
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_IMAGES = (("png", "image/png"), ("jpeg", "image/jpeg"))


@dataclass(slots=True)
class Cell:
    """What a cell has put out so far, in order."""

    pieces: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)

    def stream(self, message: Any) -> None:
        self.pieces.append(str(message.line))

    def result(self, result: Any) -> None:
        if result.text:
            if self.pieces and not self.pieces[-1].endswith("\n"):
                self.pieces.append("\n")
            self.pieces.append(str(result.text))
        for name, mime in _IMAGES:
            if data := getattr(result, name, None):
                self.images.append(f"data:{mime};base64,{str(data).replace(chr(10), '')}")

    def error(self, error: Any) -> None:
        if self.pieces and not self.pieces[-1].endswith("\n"):
            self.pieces.append("\n")
        self.pieces.append(str(error.traceback or f"{error.name}: {error.value}"))

    def text(self) -> str:
        return _ANSI.sub("", "".join(self.pieces))


class _Busy(Exception):
    """The kernel did not answer in time: an earlier cell still runs."""


class Jupyter:
    """The default Python context of one sandbox. `first_code` runs before the first cell, without being shown."""

    def __init__(self, sandbox: Sandbox, first_code: str = "") -> None:
        self._sandbox = sandbox
        self._first_code = first_code
        self._init_code = ""
        self._variables: dict[str, str] = {}
        self._cwd: str | None = None
        self._mark = secrets.token_hex(8)
        """Put into a kernel that is prepared: one that does not have it is another kernel."""
        self._prepared = False
        self._interpreter: str | None = None

    @property
    def interpreter(self) -> str:
        """Path of the kernel's Python."""
        if self._interpreter is None:
            self._interpreter = self._quiet("import sys as _s; print(_s.executable); del _s")
        return self._interpreter

    def run(
        self, code: str, *, timeout_s: float | None, cwd: str, envs: Mapping[str, str], init_code: str = ""
    ) -> tuple[str, list[str]]:
        """The cell's text and images. A failing cell is a result, with the output before it and the traceback.

        Raises AgentRuntimeDisconnectedError, AgentRuntimeError where the template has no kernel.
        """
        cell = Cell()
        restarted = False
        try:
            restarted = self._prepare(cwd, init_code, timeout_s)
            in_time = self._execute(code, cell, timeout_s, envs)
        except _Busy:
            in_time = False
        text = cell.text()
        if not in_time:
            text = f"{_own_line(text)}[Execution timed out ({timeout_s:g} seconds).]"
        text = text or ("" if cell.images else NO_OUTPUT)
        return _own_line(text) + RESTARTED if restarted else text, cell.images

    def set_variables(self, envs: Mapping[str, str]) -> None:
        """Puts environment variables into the running kernel, and into every one after it."""
        self._variables.update(envs)
        self._quiet(_set_variables(envs))

    def _prepare(self, cwd: str, init_code: str, timeout_s: float | None) -> bool:
        """Makes the kernel ready for a cell; True if it is another one than before. Raises _Busy."""
        fresh = not self._is_ours(timeout_s)
        restarted = fresh and self._prepared
        if fresh:
            self._cwd = None
            self._quiet(f"get_ipython().agent_begun = {self._mark!r}")
            if self._variables:
                self._quiet(_set_variables(self._variables))
        if cwd != self._cwd:
            self._quiet(f"import os as _o; _o.chdir({json.dumps(cwd)}); del _o")
            self._cwd = cwd
        if fresh and self._first_code and (output := self._quiet(self._first_code)):
            _log.warning("the kernel's start-up code printed: %s", output)
        init_code = init_code or self._init_code
        if init_code and (fresh or init_code != self._init_code):
            self._quiet(init_code)
            self._init_code = init_code
        if fresh:
            # Nothing where the kernel died on the way: the next cell prepares anew.
            self._quiet("get_ipython().agent_mark = get_ipython().__dict__.get('agent_begun')")
            self._prepared = True
        return restarted

    def _is_ours(self, timeout_s: float | None) -> bool:
        found = Cell()
        if not self._execute("print(getattr(get_ipython(), 'agent_mark', ''))", found, timeout_s, {}):
            raise _Busy
        return self._mark in found.text()

    def _quiet(self, code: str) -> str:
        cell = Cell()
        self._execute(code, cell, _QUIET_S, {})
        return cell.text().strip()

    def _execute(self, code: str, cell: Cell, timeout_s: float | None, envs: Mapping[str, str]) -> bool:
        """False when the time was up: the kernel is then interrupted by our going away."""
        try:
            self._sandbox.run_code(
                code,
                on_stdout=cell.stream,
                on_stderr=cell.stream,
                on_result=cell.result,
                on_error=cell.error,
                envs=dict(envs) or None,
                timeout=timeout_s or 0,
            )
        except LOST as error:
            raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error
        except SandboxException as error:
            if not self._lives():
                raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error
            if isinstance(error, TimeoutException) and "Execution timed out" in str(error):
                return False
            raise AgentRuntimeError(
                f"the code interpreter did not answer: {error}",
                hint="does the sandbox's template have a Jupyter kernel? `code-interpreter-v1` has",
            ) from error
        return True

    def _lives(self) -> bool:
        try:
            return bool(self._sandbox.is_running())
        except Exception:
            return False


def _own_line(text: str) -> str:
    """`text` so that what follows it begins a line."""
    return text + "\n" if text and not text.endswith("\n") else text


def _set_variables(envs: Mapping[str, str]) -> str:
    return f"import os as _o; _o.environ.update({json.dumps(dict(envs))}); del _o"
