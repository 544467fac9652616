"""One actor: carries lives out by the published SDK, one call after another, and tells its oracle of each answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx
from e2b import CommandExitException, Sandbox, SandboxException, SandboxState, Template
from e2b.exceptions import (
    BuildException,
    FileNotFoundException,
    NotFoundException,
    RateLimitException,
    ServiceBusyException,
)
from sdk_support import convergence_s

from .oracle import PAUSED, RUNNING, Kept, Oracle, There
from .plan import Plan, Step
from .world import SIZE

T = TypeVar("T")
NO_ANSWER = (SandboxException, ServiceBusyException, httpx.HTTPError, OSError)
"""What a call raises that may be asked again."""


def usable_within_s() -> float:
    """In which one that is there can be used, whatever is being killed meanwhile: two minutes, and more on a machine on
    which a node that was killed is back after ten seconds and killed again. It bounds a hang, it measures nothing."""
    return min(24 * convergence_s(), 600.0)


LONG_S = 3600
LOG = "/home/user/log"
# One at a time: after a pause without an answer nobody knows whether the last one still runs. What a full disk refuses
# is written again.
LOGGING = (
    f"( flock -n 9 || exit 0; n=$(cat {LOG} 2>/dev/null | wc -l); "
    f"while sleep 0.05; do echo $((n+1)) >> {LOG} && n=$((n+1)); done ) 9>/home/user/lock"
)


class Unsettled(Exception):
    """A call had no answer that says what came of it."""


class Actor:
    """`run` until `stop` is set. `announce(point)` is called just before a call is made."""

    def __init__(
        self, options: dict[str, Any], plans: Iterator[Plan], announce: Callable[[str], None], name: str
    ) -> None:
        self.oracle = Oracle()
        self.stop = threading.Event()
        self.answered: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        self.errors: dict[str, str] = {}
        """The last one of each kind of call."""
        self._options = options
        self._once = {**options, "retries": 0, "request_timeout": 60}
        self._plans = plans
        self._announce = announce
        self._name = name
        self._left = 0
        self.unbuilt: tuple[str, int] | None = None
        """A template whose build was cut off every time."""

    def run(self) -> None:
        """Never raises: what an actor did not foresee is a violation too."""
        try:
            while not self.stop.is_set():
                self._live(next(self._plans))
        except Exception as error:
            self.oracle.violations.append(f"{self._name} met {type(error).__name__}: {error}")
            raise

    # One life

    def _live(self, plan: Plan) -> None:
        on_timeout = "kill" if plan.ends == "timeout" else "pause"
        lifecycle: Any = {"on_timeout": on_timeout}
        if on_timeout == "pause":
            lifecycle["auto_resume"] = plan.auto_resume
        sandbox = self._create(lambda: Sandbox.create(timeout=LONG_S, metadata=SIZE, lifecycle=lifecycle, **self._once))
        if sandbox is None:
            time.sleep(0.1)
            return
        for step in plan.steps:
            if self.stop.is_set() or self._life(sandbox).there is not There.YES:
                break
            if step.kind in ("auto_pause", "wake") and on_timeout != "pause":
                continue
            with contextlib.suppress(Unsettled):
                getattr(self, f"_{step.kind}")(sandbox, step)
        self._end(sandbox, plan.ends)

    def _end(self, sandbox: Sandbox, how: str) -> None:
        if how == "left" and self._left < 3:
            self._left += 1
        elif self.stop.is_set() or self._life(sandbox).there is not There.YES:
            return
        elif how == "timeout":
            self.oracle.end_begun(sandbox.sandbox_id)
            with contextlib.suppress(Unsettled):
                self._running(sandbox)
                self._ask("set_timeout", lambda: Sandbox.set_timeout(sandbox.sandbox_id, 1, **self._once))
        else:
            self.kill(sandbox.sandbox_id)

    def kill(self, sandbox_id: str) -> None:
        """Ends one of its own."""
        was = self.oracle.lives[sandbox_id].there
        self.oracle.end_begun(sandbox_id)
        with contextlib.suppress(Unsettled):
            found = self._ask("kill", lambda: Sandbox.kill(sandbox_id, **self._once))
            if not found and was is There.YES:
                self.oracle.violations.append(f"{sandbox_id} was acknowledged, and a kill says that it is not there")
            self.oracle.ended(sandbox_id)

    def _create(self, call: Callable[[], Sandbox], kept: Kept | None = None, kind: str = "create") -> Sandbox | None:
        self.oracle.create_begun()
        try:
            sandbox = self._ask(kind, call)
        except Unsettled as error:
            if isinstance(error.__cause__, RateLimitException):
                self.oracle.refused()
            return None
        self.oracle.created(sandbox.sandbox_id, kept)
        return sandbox

    # Steps

    def _write(self, sandbox: Sandbox, step: Step) -> None:
        self._put(sandbox, f"/home/user/f{step.number}", f"{step.number}")

    def _overwrite(self, sandbox: Sandbox, step: Step) -> None:
        files = self._life(sandbox).kept.files
        old = [path for path in files if self.oracle.may_be_written(sandbox.sandbox_id, path)]
        if old:
            self._put(sandbox, old[step.number % len(old)], f"again {step.number}")

    def _put(self, sandbox: Sandbox, path: str, content: str) -> None:
        self._running(sandbox)
        self.oracle.write_begun(sandbox.sandbox_id, path, content)
        self._ask("write", lambda: sandbox.files.write(path, content, request_timeout=20))
        self.oracle.written(sandbox.sandbox_id, path, content)

    def _command(self, sandbox: Sandbox, step: Step) -> None:
        path, content = f"/home/user/c{step.number}", f"by a command {step.number}"
        self._running(sandbox)
        self.oracle.write_begun(sandbox.sandbox_id, path, content)
        self.oracle.write_begun(sandbox.sandbox_id, path, "")  # the shell opens it first; then it may end, or the disk
        line = f"printf '%s' '{content}' > {path} && cat {path}"
        result = self._ask("write", lambda: sandbox.commands.run(line, timeout=20, request_timeout=20))
        self.oracle.written(sandbox.sandbox_id, path, content)
        if result.stdout != content:
            self.oracle.violations.append(f"a command in {sandbox.sandbox_id} printed {result.stdout!r:.80}")

    def _background(self, sandbox: Sandbox, step: Step) -> None:
        self._running(sandbox)
        handle = self._ask(
            "command", lambda: sandbox.commands.run("sleep 100000", background=True, timeout=0, request_timeout=20)
        )
        handle.disconnect()
        self.oracle.command_began(sandbox.sandbox_id, handle.pid)

    def _log(self, sandbox: Sandbox, step: Step) -> None:
        self._running(sandbox)
        self._ask(
            "command", lambda: sandbox.commands.run(LOGGING, background=True, timeout=0, request_timeout=20)
        ).disconnect()

    def _read(self, sandbox: Sandbox, step: Step) -> None:
        self._running(sandbox)
        known = list(self._life(sandbox).kept.files)
        if known:
            self.read_file(sandbox, known[step.number % len(known)])

    def _look(self, sandbox: Sandbox, step: Step) -> None:
        self._running(sandbox)
        self.look(sandbox)

    def _set_timeout(self, sandbox: Sandbox, step: Step) -> None:
        self._running(sandbox)
        self._ask("set_timeout", lambda: Sandbox.set_timeout(sandbox.sandbox_id, LONG_S, **self._once))

    def _pause(self, sandbox: Sandbox, step: Step, *, with_memory: bool = True) -> None:
        self._running(sandbox)
        mode: Any = "full" if with_memory else "filesystem"
        self.oracle.pause_begun(sandbox.sandbox_id, with_memory=with_memory)
        self._move(sandbox, "pause", lambda: Sandbox.pause(sandbox.sandbox_id, mode=mode, **self._once))
        self.oracle.paused(sandbox.sandbox_id)

    def _pause_disk(self, sandbox: Sandbox, step: Step) -> None:
        self._pause(sandbox, step, with_memory=False)

    def _resume(self, sandbox: Sandbox, step: Step) -> None:
        self._running(sandbox)
        self.look(sandbox)

    def _reboot(self, sandbox: Sandbox, step: Step) -> None:
        self._pause(sandbox, step)
        self._connect(sandbox, by_boot=True)

    def _auto_pause(self, sandbox: Sandbox, step: Step) -> None:
        self._running(sandbox)
        self.oracle.pause_begun(sandbox.sandbox_id, with_memory=True)
        self._move(sandbox, "auto_pause", lambda: Sandbox.set_timeout(sandbox.sandbox_id, 1, **self._once))
        deadline = time.monotonic() + usable_within_s()
        while self._state(sandbox) != PAUSED:
            if time.monotonic() > deadline:
                self.oracle.violations.append(f"{sandbox.sandbox_id} was not paused at its timeout")
                raise Unsettled
            time.sleep(0.2)
        self.oracle.paused(sandbox.sandbox_id)

    def _wake(self, sandbox: Sandbox, step: Step) -> None:
        """By traffic, where it may; a reading that is not answered is told by the next look."""
        self._auto_pause(sandbox, step)
        self.oracle.resume_begun(sandbox.sandbox_id, by_boot=False)
        known = [path for path, may_be in self._life(sandbox).kept.files.items() if None not in may_be]
        if known:
            with contextlib.suppress(Unsettled):
                self.read_file(sandbox, known[0])

    def _snapshot(self, sandbox: Sandbox, step: Step) -> None:
        self._running(sandbox)
        kept = self._life(sandbox).kept.copy()
        made = self._ask("snapshot", lambda: Sandbox.create_snapshot(sandbox.sandbox_id, **self._once))
        self.oracle.snapshot_taken(made.snapshot_id, kept)

    def _from_snapshot(self, sandbox: Sandbox, step: Step) -> None:
        there = [one for one, (_, there) in self.oracle.snapshots.items() if there is There.YES]
        if there:
            chosen = there[step.number % len(there)]
            kept = self.oracle.snapshots[chosen][0]
            child = self._create(
                lambda: Sandbox.create(chosen, timeout=LONG_S, metadata=SIZE, **self._once), kept, "from_snapshot"
            )
            if child is not None:
                self._examine_child(child, step)

    def _fork(self, sandbox: Sandbox, step: Step) -> None:
        self._running(sandbox)
        kept, count = self._life(sandbox).kept.copy(), 2
        self.oracle.create_begun(count)
        made = self._ask("fork", lambda: sandbox.fork(timeout=LONG_S, count=count, **self._once))
        children = [child for child in made if isinstance(child, Sandbox)]
        self.oracle.refused(count - len(children))
        for child in children:
            self.oracle.created(child.sandbox_id, kept)
        for child in children:
            self._examine_child(child, step)

    def _examine_child(self, child: Sandbox, step: Step) -> None:
        try:
            with contextlib.suppress(Unsettled):
                self._running(child)
                self.look(child)
                self._put(child, f"/home/user/child{step.number}", child.sandbox_id)
        finally:
            if (step.number % 4) or self._left >= 3:
                self.kill(child.sandbox_id)
            else:
                self._left += 1

    def _delete_snapshot(self, sandbox: Sandbox, step: Step) -> None:
        there = [one for one, (_, there) in self.oracle.snapshots.items() if there is There.YES]
        if len(there) > 2:
            self.delete_snapshot(there[0])

    def delete_snapshot(self, snapshot_id: str) -> None:
        """One of its own."""
        self.oracle.snapshot_end_begun(snapshot_id)
        with contextlib.suppress(Unsettled):
            self._ask("delete_snapshot", lambda: Sandbox.delete_snapshot(snapshot_id, **self._once))
            self.oracle.snapshot_ended(snapshot_id)

    def _build(self, sandbox: Sandbox, step: Step) -> None:
        """Cut off by whatever is killed. The name is free for another try then: `build_at_last`."""
        name = f"chaos{self._name}{step.number}".lower()
        self.unbuilt = name, step.number
        for _ in range(5):
            if self.stop.is_set():
                return
            with contextlib.suppress(Unsettled):
                self.build_at_last()
                return
            time.sleep(0.5)

    def build_at_last(self) -> None:
        """Builds what could not be built before, and looks into it. Raises Unsettled."""
        if self.unbuilt is None:
            return
        name, number = self.unbuilt
        build = Template().from_template("base").run_cmd(f"echo {number} | sudo tee /built; sleep 1")
        options = {name: self._once[name] for name in ("api_key", "api_url")}
        self._ask("build", lambda: Template.build(build, name, **options))
        self.unbuilt = None
        made = self._create(lambda: Sandbox.create(name, timeout=LONG_S, metadata=SIZE, **self._once))
        if made is not None:
            with contextlib.suppress(Unsettled):
                content = self._ask("read", lambda: made.files.read("/built", request_timeout=20))
                if content.strip() != str(number):
                    self.oracle.violations.append(f"the template {name} holds {content!r:.80}")
            self.kill(made.sandbox_id)

    # What is found

    def look(self, sandbox: Sandbox) -> None:
        """Its log and its commands. Raises Unsettled."""
        with contextlib.suppress(FileNotFoundException):
            text = self._ask("read", lambda: sandbox.files.read(LOG, request_timeout=20))
            self.oracle.saw_log(sandbox.sandbox_id, text.split("\n")[:-1])
        found = self._ask("read", lambda: sandbox.commands.list(request_timeout=20))
        self.oracle.saw_commands(sandbox.sandbox_id, [one.pid for one in found])

    def read_file(self, sandbox: Sandbox, path: str) -> None:
        """Raises Unsettled."""
        try:
            content = self._ask("read", lambda: sandbox.files.read(path, request_timeout=20))
        except FileNotFoundException:
            content = None
        self.oracle.saw_file(sandbox.sandbox_id, path, content)

    def verify(self, sandbox_id: str) -> None:
        """All that was acknowledged of one of its own."""
        try:
            sandbox = self._patiently(lambda: Sandbox.connect(sandbox_id, timeout=LONG_S, **self._once), sandbox_id)
            if sandbox is None:
                return
            self._running(sandbox)
            for path in self.oracle.lives[sandbox_id].kept.files:
                self.read_file(sandbox, path)
            self.look(sandbox)
        except Unsettled as error:
            self.oracle.violations.append(f"{sandbox_id} cannot be examined: {error.__cause__!r:.300}")

    # Calls

    def _life(self, sandbox: Sandbox) -> Any:
        return self.oracle.lives[sandbox.sandbox_id]

    def _ask(self, kind: str, call: Callable[[], T]) -> T:
        """Raises Unsettled; FileNotFoundException, which is an answer."""
        self._announce(kind)
        try:
            value = call()
        except FileNotFoundException:
            self.answered[kind] += 1
            raise
        except (*NO_ANSWER, BuildException, CommandExitException) as error:
            self.unanswered[kind] += 1
            self.errors[kind] = f"{type(error).__name__}: {error}"[:200]
            raise Unsettled(kind) from error
        self.answered[kind] += 1
        return value

    def _move(self, sandbox: Sandbox, kind: str, call: Callable[[], object]) -> None:
        try:
            self._ask(kind, call)
        except Unsettled:
            self.oracle.unsettled(sandbox.sandbox_id)
            raise

    def _connect(self, sandbox: Sandbox, *, by_boot: bool) -> None:
        self.oracle.resume_begun(sandbox.sandbox_id, by_boot=by_boot)
        how: Any = "reboot" if by_boot else "restore"
        self._move(sandbox, "resume", lambda: sandbox.connect(timeout=LONG_S, on_resume=how, **self._once))
        self.oracle.resumed(sandbox.sandbox_id)

    def _state(self, sandbox: Sandbox) -> str:
        info = self._patiently(lambda: Sandbox.get_info(sandbox.sandbox_id, **self._once), sandbox.sandbox_id)
        if info is None:
            raise Unsettled
        return PAUSED if info.state is SandboxState.PAUSED else RUNNING

    def _running(self, sandbox: Sandbox) -> None:
        """Resumed if it is paused, and it has a long time to live. Raises Unsettled."""
        within_s = usable_within_s()
        deadline = time.monotonic() + within_s
        while self._state(sandbox) != RUNNING or self._life(sandbox).states != {RUNNING}:
            try:
                self._connect(sandbox, by_boot=False)
                return
            except Unsettled as error:
                self._reboot_if_it_must(sandbox, error)
            if time.monotonic() > deadline:
                self.oracle.violations.append(f"{sandbox.sandbox_id} could not be resumed in {within_s:g} s")
                raise Unsettled
            time.sleep(0.2)

    def _reboot_if_it_must(self, sandbox: Sandbox, error: Unsettled) -> None:
        """Its memory is lost and the server says so: allowed where the last pause or resume had no answer alone."""
        if "reboot" in str(error.__cause__):
            self.oracle.saw_commands(sandbox.sandbox_id, ())
            with contextlib.suppress(Unsettled):
                self._connect(sandbox, by_boot=True)

    def _patiently(self, call: Callable[[], T], sandbox_id: str) -> T | None:
        """Until it is answered. None: the answer is that it is gone."""
        deadline = time.monotonic() + usable_within_s()
        while True:
            try:
                return call()
            except NotFoundException:
                self.oracle.saw_gone(sandbox_id)
                return None
            except NO_ANSWER as error:
                if time.monotonic() > deadline:
                    raise Unsettled from error
            time.sleep(0.1)
