"""Carries faults out, each when its point is reached."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence

from .plan import Fault
from .world import World

_POINT_WITHIN_S = 2.0
"""A point that no actor reaches in this time does not hold the next fault up."""
_VICTIM_WITHIN_S = 30.0


class Points:
    """Where actors are: `announce` by them, `wait` by the killer."""

    def __init__(self) -> None:
        self._reached: Counter[str] = Counter()
        self._changed = threading.Condition()

    def announce(self, point: str) -> None:
        with self._changed:
            self._reached[point] += 1
            self._changed.notify_all()

    def wait(self, point: str) -> bool:
        """Until it is reached once more. False: it was not."""
        with self._changed:
            before = self._reached[point]
            return self._changed.wait_for(lambda: self._reached[point] > before, _POINT_WITHIN_S)


class Killer:
    """`run` returns when every fault has been tried."""

    def __init__(self, world: World, faults: Sequence[Fault], points: Points) -> None:
        self.done: Counter[str] = Counter()
        self.at_points: Counter[str] = Counter()
        self.violations: list[str] = []
        self._world = world
        self._faults = faults
        self._points = points

    def run(self) -> None:
        """Never raises. Says how far it is."""
        try:
            for number, fault in enumerate(self._faults, 1):
                self._carry_out(fault)
                if number % 50 == 0:
                    print(f"  {number} of {len(self._faults)} faults", flush=True)
        except Exception as error:
            self.violations.append(f"the server does not come back: {error}"[:2000])

    def _carry_out(self, fault: Fault) -> None:
        reached = bool(fault.point) and self._points.wait(fault.point)
        time.sleep(fault.delay_s)
        if fault.kind == "fill":
            with self._world.disk_filled():
                time.sleep(fault.for_s)
        elif fault.kind == "jump":
            self._world.jump(fault.for_s)
        elif fault.victim == "launcher" and fault.kind == "kill":
            self._world.restart()
        elif not self._signal(fault):
            return
        self.done[f"{fault.kind} {fault.victim}".strip()] += 1
        if reached:
            self.at_points[fault.point] += 1

    def _signal(self, fault: Fault) -> bool:
        deadline = time.monotonic() + (_VICTIM_WITHIN_S if fault.victim != "zygote" else 2.0)
        while not (pids := self._world.pids_of(fault.victim)):
            if time.monotonic() > deadline:
                if fault.victim != "zygote":  # which is started when it is needed
                    self.violations.append(f"the {fault.victim} was not started again in {_VICTIM_WITHIN_S:g} s")
                return False
            time.sleep(0.05)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                if fault.kind == "kill":
                    os.kill(pid, signal.SIGKILL)
                else:
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(fault.for_s)
                    os.kill(pid, signal.SIGCONT)
        return True
