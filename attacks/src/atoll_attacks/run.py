"""Runs attempts against sandboxes of whatever platform the SDK's variables name, and their controls on the host.

attack(attempt)   in the sandbox; says how the host saw it end
control(attempt)  on the host, without the wall; must be a breach, or the attempt proves nothing

Sandboxes are shared: one for most attempts, a small one for those that use up what they have, one for each policy.
Those of the same program share its run, and some run at the same time (`beside_others`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from atoll_attacks.attempt import MODULES, Attempt, Deed, Family, Impossible, Judge, Outcome, Program
from atoll_attacks.egress import POLICIES
from atoll_attacks.outside.network import Networks
from atoll_attacks.resources import LIMITS
from atoll_attacks.running import INSIDE, Trial, Unwalled, Walled, watch
from atoll_attacks.scene import Scene, World, new_tag

if TYPE_CHECKING:
    from e2b import Sandbox

_SANDBOX_LIVES_S = 900
_AT_ONCE = 4
_TRIES = 3
_CONTROL_TRIES = 2
_BESIDE = {Family.POSTURE, Family.ESCAPE, Family.EGRESS}
"""Families whose attempts do not touch one another's sandbox."""


Act = Program | Deed
Controls = dict[tuple[Act, Judge], Outcome]
"""Controls that were run: they do not depend on the tier, so each is run once on a machine."""

Ended = tuple[Outcome, Outcome | Impossible | None]
"""How an attempt and its control ended; None: it was not asked for."""


def beside_others(attempt: Attempt) -> bool:
    """Whether it may run while others do."""
    return attempt.family in _BESIDE and not attempt.disturbs and isinstance(attempt.act, Program)


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
        self._small_limits = dict(small)
        self._sandbox: Sandbox | None = None
        self._small: Sandbox | None = None
        self._other: Sandbox | None = None
        self._by_policy: dict[str, Sandbox] = {}
        self._making = threading.RLock()
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
            for sandbox in (self._sandbox, self._small, self._other, *self._by_policy.values()):
                if sandbox is not None:
                    _end(sandbox)
        finally:
            self.world.__exit__(kind, error, trace)

    # -- attempts ------------------------------------------------------------------------------------------------------

    def attack(self, attempt: Attempt) -> Outcome:
        """Tries it in a sandbox. A sandbox that did not survive is replaced for the next one."""
        (outcome,) = self._attack([attempt])
        if attempt.spoils and self._small is not None:
            _end(self._small)
            self._small = None
        if outcome.breach is not None and not _policy(attempt):
            spoilt, self._sandbox, self._small = (self._sandbox, self._small), None, None
            for sandbox in spoilt:
                if sandbox is not None:
                    _end(sandbox)
        # Asking costs a second on a busy machine: only where there is a reason for doubt. What was tried on the guest
        # may show only later.
        doubtful = outcome.breach is not None or attempt.family is Family.GUEST or _broke_off(outcome)
        self._doubtful = self._doubtful or doubtful
        return outcome

    def attack_all(
        self, attempts: Sequence[Attempt], controls: bool = False, tell: Callable[[str], None] = lambda name: None
    ) -> dict[str, Ended]:
        """Those that may (`beside_others`) several at once, the rest one by one: (attack, control) by name.

        `tell` hears the name of each that has ended.

        What looks like a breach among several is tried once more alone, so that it is said of the right one.
        """
        several = [one for one in attempts if beside_others(one)]
        outcomes: dict[str, Outcome] = {}
        if several:
            self._ready_for(several)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                for group, found in pool.map(lambda group: (group, self._attack(group)), _by_act(several)):
                    outcomes |= {one.name: outcome for one, outcome in zip(group, found, strict=True)}
                    for one in group:
                        tell(one.name)
        for one in attempts:
            seen = outcomes.get(one.name)
            if seen is None or seen.breach is not None:
                alone = self.attack(one)
                outcomes[one.name] = alone if seen is None or alone.breach is not None else seen
                tell(one.name)
        if controls:
            self.run_controls(attempts)
        return {one.name: (outcomes[one.name], self.control(one) if controls else None) for one in attempts}

    def _attack(self, attempts: Sequence[Attempt]) -> list[Outcome]:
        """All of the same act."""
        one, policy = attempts[0], _policy(attempts[0])
        sandbox = self.of_policy(policy) if policy else self._small_one() if one.small else self._attacker()
        other = None if policy else self._neighbour()
        tag, before = new_tag(), self.world.snapshot()
        trials = [Trial(Scene(self.world, sandbox, tag, before=before, other=other), each.judge) for each in attempts]
        try:
            self._act(one.act, trials)
        finally:
            self.world.new_victim()
        return [trial.outcome() for trial in trials]

    def _act(self, act: Act, trials: Sequence[Trial]) -> None:
        scene = trials[0].scene
        if isinstance(act, Deed):
            (trial,) = trials
            trial.look(act.act(scene))
            return
        sandbox = scene.sandbox
        running = Unwalled(scene, act) if sandbox is None else Walled(scene, act, sandbox, self._there)
        watch(running, trials, act.timeout_s)

    # -- controls ------------------------------------------------------------------------------------------------------

    def control(self, attempt: Attempt) -> Outcome | Impossible:
        """The same without the wall. A file that this machine does not have makes it impossible.

        What was a control before, before the same judge, is not run again.
        """
        if reason := self._without(attempt):
            return Impossible(reason)
        tried = _tried(attempt)
        if tried not in self._controls:
            self._run_controls(tried[0], [tried[1]], attempt)
        return self._controls[tried]

    def run_controls(self, attempts: Sequence[Attempt]) -> None:
        """So that `control` knows them: those of one program together, those of egress several at a time."""
        wanted: dict[Act, dict[Judge, Attempt]] = {}
        for one in attempts:
            if not self._without(one) and (tried := _tried(one)) not in self._controls:
                wanted.setdefault(tried[0], {})[tried[1]] = one
        runs = [(act, list(judges), next(iter(judges.values()))) for act, judges in wanted.items()]
        many = [run for run in runs if isinstance(run[0], Program) and run[0].policy]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda run: self._run_controls(*run), many))
        for act, judges, one in runs:
            if (act, judges[0]) not in self._controls:
                self._run_controls(act, judges, one)

    def _without(self, attempt: Attempt) -> str:
        """Why there is no control of it here; "" where there is."""
        control = attempt.control
        if isinstance(control, Impossible):
            return control.reason
        canary = control.needs.partition("canary:")[2]
        if canary and canary not in self.world.places:
            return f"this machine offers no canary for it: {canary}"
        if control.needs and not canary and not Path(control.needs).exists():
            return f"this machine has no {control.needs}"
        return ""

    def _run_controls(self, act: Act, judges: Sequence[Judge], attempt: Attempt) -> None:
        """Once more where no breach was seen: on a very busy machine the host may look too late."""
        outcomes: dict[Judge, Outcome] = {}
        for _ in range(_CONTROL_TRIES):
            unseen = [judge for judge in judges if judge not in outcomes or outcomes[judge].breach is None]
            if unseen:
                outcomes |= self._run_control(act, unseen, attempt)
        self._controls |= {(act, judge): outcome for judge, outcome in outcomes.items()}

    def _run_control(self, act: Act, judges: Sequence[Judge], attempt: Attempt) -> dict[Judge, Outcome]:
        control, tag, before = attempt.control, new_tag(), self.world.snapshot()
        assert not isinstance(control, Impossible)
        sandbox = other = None
        if isinstance(control.act, Deed) and attempt.family is not Family.AGENT:
            # What is asked of the server stays so: the control differs in what is asked, not in who is there.
            sandbox, other = self._attacker(), self._neighbour()
        elif control.walled and isinstance(act, Program):
            sandbox = self.of_policy(act.policy)
        trials = [Trial(Scene(self.world, sandbox, tag, before=before, other=other), judge) for judge in judges]
        try:
            self._act(act, trials)
        finally:
            self.world.new_victim()
        return {trial.judge: trial.outcome() for trial in trials}

    # -- sandboxes -----------------------------------------------------------------------------------------------------

    def _ready_for(self, attempts: Sequence[Attempt]) -> None:
        """Their sandboxes, made before several run at once, with their programs."""
        for one in attempts:
            if policy := _policy(one):
                self.of_policy(policy)
            else:
                self._attacker()
                self._neighbour()

    def _attacker(self) -> Sandbox:
        with self._making:
            self._look_after()
            if self._sandbox is None:
                self._sandbox = self.make({})
            return self._sandbox

    def _small_one(self) -> Sandbox:
        with self._making:
            if self._small is None or not _lives(self._small):
                self._small = self.make(self._small_limits)
            return self._small

    def _neighbour(self) -> Sandbox:
        with self._making:
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
        """A sandbox with what the programs of attempts need; the caller ends it.

        On a very busy machine, as attacks make it, one may not start in time: then another is asked for.
        """
        from e2b import Sandbox, SandboxException

        for tries_left in range(_TRIES - 1, -1, -1):
            try:
                sandbox = Sandbox.create(
                    self._template, timeout=_SANDBOX_LIVES_S, metadata=dict(metadata), secure=True, **options
                )
                break
            except SandboxException:
                if not tries_left:
                    raise
        for file in MODULES:
            sandbox.files.write(str(INSIDE / file.name), file.read_bytes(), user="root")
        return sandbox


def _policy(attempt: Attempt) -> str:
    return attempt.act.policy if isinstance(attempt.act, Program) else ""


def _tried(attempt: Attempt) -> tuple[Act, Judge]:
    """What its control does, and who judges it."""
    assert not isinstance(attempt.control, Impossible)
    return attempt.control.act or attempt.act, attempt.control.judge or attempt.judge


def _by_act(attempts: Sequence[Attempt]) -> list[list[Attempt]]:
    groups: dict[Act, list[Attempt]] = {}
    for one in attempts:
        groups.setdefault(one.act, []).append(one)
    return list(groups.values())


def _end(sandbox: Sandbox) -> None:
    with contextlib.suppress(Exception):
        sandbox.kill()


def _broke_off(outcome: Outcome) -> bool:
    """Whether the program's end was an error of the SDK and not the program's."""
    return outcome.said.endswith("Exception]") and not outcome.said.endswith("CommandExitException]")


def _lives(sandbox: Sandbox) -> bool:
    """False too where the guest does not answer: no attempt begins with what an earlier one left."""
    try:
        return sandbox.is_running(request_timeout=5)
    except Exception:
        return False
