"""Runs attempts against sandboxes of whatever platform the SDK's variables name, and their controls on the host.

attack(attempt)   in the sandbox; says how the host saw it end
control(attempt)  on the host, without the wall; must be a breach, or the attempt proves nothing
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from atoll_attacks.attempt import MODULES, Attempt, Control, Deed, Family, Impossible, Judge, Outcome, Program
from atoll_attacks.egress import POLICIES
from atoll_attacks.outside.network import Networks
from atoll_attacks.resources import LIMITS
from atoll_attacks.scene import Scene, World, end, run_unwalled

if TYPE_CHECKING:
    from e2b import CommandHandle, Sandbox

_LOOK_EVERY_S = 0.05
_LOOKS_AT_A_GAIN = 4
"""How often the host looks at a program that holds what it has (`inside.hold`), before the program is ended."""
_SAID = 1500
_HEARD = 2 << 20
_SANDBOX_LIVES_S = 900
_AT_ONCE = 4
_INSIDE = "/var/tmp/attempts"
"""Where programs lie in a sandbox."""


Controls = dict[tuple[Program | Deed, Judge], Outcome]
"""Controls that were run: they have no sandbox, so one machine shows the same in every tier."""


class Range:
    """Where attempts are run: the canaries, a sandbox that attacks, and a neighbour. A context manager.

    `controls` may be one for several of these.
    """

    def __init__(
        self,
        *,
        template: str = "base",
        data_dir: Path | None = None,
        small: Mapping[str, str] = LIMITS,
        controls: Controls | None = None,
        networks: Networks | None = None,
    ) -> None:
        self._controls = {} if controls is None else controls
        self.world = World(networks)
        self.world.data_dir = data_dir
        self._template = template
        self._small = dict(small)
        self._sandbox: Sandbox | None = None
        self._other: Sandbox | None = None
        self._by_policy: dict[str, Sandbox] = {}
        self._making = threading.Lock()
        self._there: set[tuple[str, str]] = set()
        """(sandbox, file) of the programs that have been written."""
        self._doubtful = False

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise PermissionError("the canaries of an attack are what only root may make: run it as root")
        self.world.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for sandbox in (self._sandbox, self._other, *self._by_policy.values()):
                if sandbox is not None:
                    with contextlib.suppress(Exception):
                        sandbox.kill()
        finally:
            self.world.__exit__(kind, error, trace)

    # -- one attempt ---------------------------------------------------------------------------------------------------

    def attack(self, attempt: Attempt) -> Outcome:
        """Tries it in a sandbox. A sandbox that did not survive is replaced for the next one."""
        own = self.make(self._small) if attempt.alone else None
        policy = attempt.act.policy if isinstance(attempt.act, Program) else ""
        sandbox = own or (self.of_policy(policy) if policy else self._attacker())
        other = None if policy else self._neighbour()
        scene = Scene(self.world, sandbox, before=self.world.snapshot(), other=other)
        try:
            outcome = self._act(attempt, attempt.act, scene)
        finally:
            self.world.new_victim()
            if own is not None:
                with contextlib.suppress(Exception):
                    own.kill()
        if outcome.breach is not None and own is None and not policy:
            self._sandbox = None
            with contextlib.suppress(Exception):
                sandbox.kill()
        # Asking costs a second on a busy machine: only where there is a reason for doubt. What was tried on the guest
        # may show only later.
        doubtful = outcome.breach is not None or attempt.family is Family.GUEST or _broke_off(outcome)
        self._doubtful = self._doubtful or doubtful
        return outcome

    def control(self, attempt: Attempt) -> Outcome | Impossible:
        """The same without the wall. A file that this machine does not have makes it impossible.

        A program that was a control before, before the same judge, is not run again.
        """
        control = attempt.control
        if isinstance(control, Impossible):
            return control
        canary = control.needs.partition("canary:")[2]
        if canary and canary not in self.world.places:
            return Impossible(f"this machine offers no canary for it: {canary}")
        if control.needs and not canary and not Path(control.needs).exists():
            return Impossible(f"this machine has no {control.needs}")
        act = control.act or attempt.act
        tried = (act, control.judge or attempt.judge)
        if isinstance(act, Program) and tried in self._controls and not control.walled:
            return self._controls[tried]
        scene = Scene(self.world, None, before=self.world.snapshot())
        if isinstance(control.act, Deed):
            # What is asked of the server stays so: the control differs in what is asked, not in who is there.
            scene.sandbox, scene.other = self._attacker(), self._neighbour()
        if control.walled and isinstance(act, Program):
            scene.sandbox = self.of_policy(act.policy)
        try:
            self._controls[tried] = self._act(attempt, act, scene, control)
            return self._controls[tried]
        finally:
            self.world.new_victim()

    def _act(self, attempt: Attempt, act: Program | Deed, scene: Scene, control: Control | None = None) -> Outcome:
        judge = (control.judge if control is not None else None) or attempt.judge
        if isinstance(act, Deed):
            scene.output = act.act(scene)
            return Outcome(judge(scene), scene.output[-_SAID:])
        breach = None
        running = _Unwalled(scene, act) if scene.sandbox is None else _Walled(scene, act, scene.sandbox, self._there)
        scene.running = True
        with running:
            deadline, looks = time.monotonic() + act.timeout_s, 0
            while not running.ended() and time.monotonic() < deadline and looks < _LOOKS_AT_A_GAIN:
                scene.output = running.said
                looks += "HOLDING" in scene.output
                breach = judge(scene)
                if breach is not None:
                    break
                time.sleep(_LOOK_EVERY_S)
        scene.running = False
        scene.output = running.said
        return Outcome(breach or judge(scene), scene.output[-_SAID:])

    def attack_all(
        self, attempts: Sequence[Attempt], controls: bool = False
    ) -> dict[str, tuple[Outcome, Outcome | Impossible | None]]:
        """Several at once, those that mostly wait for answers: (attack, control) by name."""

        def both(attempt: Attempt) -> tuple[str, tuple[Outcome, Outcome | Impossible | None]]:
            return attempt.name, (self.attack(attempt), self.control(attempt) if controls else None)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(pool.map(both, attempts))

    # -- sandboxes -----------------------------------------------------------------------------------------------------

    def _attacker(self) -> Sandbox:
        self._look_after()
        if self._sandbox is None:
            self._sandbox = self.make({})
        return self._sandbox

    def _neighbour(self) -> Sandbox:
        self._look_after()
        if self._other is None:
            self._other = self.make({})
        return self._other

    def _look_after(self) -> None:
        if self._doubtful:
            self._doubtful = False
            self._sandbox = self._sandbox if self._sandbox is not None and _lives(self._sandbox) else None
            self._other = self._other if self._other is not None and _lives(self._other) else None

    def of_policy(self, policy: str) -> Sandbox:
        """The sandbox of family egress with this policy."""
        with self._making:
            if policy not in self._by_policy:
                self._by_policy[policy] = self.make({}, POLICIES[policy])
            return self._by_policy[policy]

    def make(self, metadata: Mapping[str, str], options: Mapping[str, Any] = MappingProxyType({})) -> Sandbox:
        """A sandbox with what the programs of attempts need; the caller ends it."""
        from e2b import Sandbox

        sandbox = Sandbox.create(
            self._template, timeout=_SANDBOX_LIVES_S, metadata=dict(metadata), secure=True, **options
        )
        for file in MODULES:
            sandbox.files.write(f"{_INSIDE}/{file.name}", file.read_bytes(), user="root")
        return sandbox


def _broke_off(outcome: Outcome) -> bool:
    """Whether the program's end was an error of the SDK and not the program's."""
    return outcome.said.endswith("Exception]") and not outcome.said.endswith("CommandExitException]")


def _lives(sandbox: Sandbox) -> bool:
    """False too where the guest does not answer: no attempt begins with what an earlier one left."""
    try:
        return sandbox.is_running(request_timeout=5)
    except Exception:
        return False


class _Walled:
    """A program in a sandbox, watched from a thread. A context manager; the end of the block ends the program.

    `there`: what need not be written into a sandbox again.
    """

    def __init__(self, scene: Scene, program: Program, sandbox: Sandbox, there: set[tuple[str, str]]) -> None:
        self.said = ""
        self._sandbox = sandbox
        path = f"{_INSIDE}/{program.file.name}"
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


class _Unwalled:
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
