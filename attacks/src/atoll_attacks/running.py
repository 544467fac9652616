"""A program under way, in a sandbox or without one, and the looks at what it has got while it runs."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from atoll_attacks.attempt import Judge, Outcome, Program
from atoll_attacks.scene import Scene, end, run_unwalled

if TYPE_CHECKING:
    from e2b import CommandHandle, Sandbox

INSIDE = Path("/var/tmp/attempts")
"""Where programs lie in a sandbox."""

_LOOK_EVERY_S = 0.05
_LOOKS_AT_A_GAIN = 4
"""How often the host looks at a program that holds what it has (`inside.hold`), before the program is ended."""
_SAID = 1500
_HEARD = 2 << 20


@dataclass(slots=True)
class Trial:
    """One attempt or control as it goes on. Those of the same program share its run."""

    scene: Scene
    judge: Judge
    breach: str | None = None

    def look(self, said: str) -> bool:
        """Whether it is a breach by now."""
        self.scene.output = said
        self.breach = self.breach or self.judge(self.scene)
        return self.breach is not None

    def outcome(self) -> Outcome:
        """How it ended."""
        return Outcome(self.breach, self.scene.output[-_SAID:])


def watch(running: Walled | Unwalled, trials: Sequence[Trial], timeout_s: float) -> None:
    """Runs it to its end, or until all has been seen; every trial is judged meanwhile and afterwards."""
    for trial in trials:
        trial.scene.running = True
    with running:
        deadline, looks = time.monotonic() + timeout_s, 0
        while not running.ended() and time.monotonic() < deadline and looks < _LOOKS_AT_A_GAIN:
            said = running.said
            looks += "HOLDING" in said
            seen = [trial.look(said) for trial in trials]  # each of them looks
            if all(seen):
                break
            time.sleep(_LOOK_EVERY_S)
    for trial in trials:
        trial.scene.running = False
        trial.look(running.said)


class Walled:
    """A program in a sandbox, watched from a thread. A context manager; the end of the block ends the program.

    `there`: what need not be written into a sandbox again.
    """

    def __init__(self, scene: Scene, program: Program, sandbox: Sandbox, there: set[tuple[str, str]]) -> None:
        self.said = ""
        self._sandbox = sandbox
        path = str(INSIDE / program.file.name)
        if (sandbox.sandbox_id, path) not in there:
            sandbox.files.write(path, program.file.read_bytes(), user="root")
            there.add((sandbox.sandbox_id, path))
        words = " ".join(shlex.quote(word) for word in (*scene.arguments, *program.arguments))
        self._command = f"exec python3 -E -s -B {path} {words} 2>&1"
        self._program = program
        self._handle: CommandHandle | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None and self._thread.is_alive():
            with contextlib.suppress(Exception):
                self._handle.kill()
        self._thread.join(self._program.timeout_s + 10)

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._handle = self._sandbox.commands.run(
                self._command, background=True, user=self._program.user, timeout=self._program.timeout_s
            )
            self._handle.wait(on_stdout=self._hear)
        except Exception as error:
            self.said += f"\n[{type(error).__name__}]"

    def _hear(self, text: str) -> None:
        self.said = (self.said + text)[-_HEARD:]


class Unwalled:
    """A program on the host. A context manager; the end of the block ends the program and all that it started."""

    def __init__(self, scene: Scene, program: Program) -> None:
        self._scene = scene
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._at_the_end: str | None = None

    @property
    def said(self) -> str:
        if self._at_the_end is not None:
            return self._at_the_end
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), _HEARD, max(0, size - _HEARD)).decode("utf-8", "replace")

    def __enter__(self) -> Self:
        self._process = run_unwalled(self._scene, self._program, self._output.fileno())
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            end(self._process)
        with self._output:
            self._at_the_end = self.said

    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None
