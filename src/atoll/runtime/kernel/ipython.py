"""Cells on the sandbox's Jupyter kernel through the published code interpreter, as OpenHands shows them.

Owns the order of outputs, images as data URLs, the time limit, the kernel's working directory and its start-up code.
The kernel's state lives as long as the sandbox.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from e2b import SandboxException, TimeoutException
from e2b_code_interpreter import Sandbox

from atoll.runtime.errors import LOST, AgentRuntimeDisconnectedError, AgentRuntimeError

NO_OUTPUT = "[Code executed successfully with no output]"
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


class Jupyter:
    """The default Python context of one sandbox. `first_code` runs before the first cell, without being shown."""

    def __init__(self, sandbox: Sandbox, first_code: str = "") -> None:
        self._sandbox = sandbox
        self._first_code = first_code
        self._cwd: str | None = None
        self._init_code = ""
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
        if cwd != self._cwd:
            self._quiet(f"import os as _o; _o.chdir({json.dumps(cwd)}); del _o")
            self._cwd = cwd
        if self._first_code:
            said = self._quiet(self._first_code)
            if said:
                _log.warning("the kernel's start-up code said: %s", said)
            self._first_code = ""
        if init_code and init_code != self._init_code:
            self._quiet(init_code)
            self._init_code = init_code
        cell = Cell()
        if not self._execute(code, cell, timeout_s, envs):
            text = cell.text()
            if text and not text.endswith("\n"):
                text += "\n"
            return f"{text}[Execution timed out ({timeout_s:g} seconds).]", cell.images
        return cell.text() or ("" if cell.images else NO_OUTPUT), cell.images

    def set_variables(self, envs: Mapping[str, str]) -> None:
        """Puts environment variables into the running kernel."""
        self._quiet(f"import os as _o; _o.environ.update({json.dumps(dict(envs))}); del _o")

    def _quiet(self, code: str) -> str:
        cell = Cell()
        self._execute(code, cell, 60.0, {})
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
