"""What every scenario is made of: how much of everything, a command that must be accepted, a clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from atoll.runtime import CmdOutputObservation, CmdRunAction, E2BRuntime
from atoll.stress.measure import Outcome

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    edits: int = 1000
    requests: int = 1000
    iterations: int = 10
    cpu_s: float = 10.0
    at_once: int = 64
    jobs: int = 300
    actions: int = 200
    hard_timeout_s: float = 2.0
    template: str | None = None
    """Of the sandboxes; None: the runtime's own choice. `actions` needs one with a kernel, and chooses for itself."""


FULL = Sizes()
QUICK = Sizes(edits=200, requests=200, iterations=3, cpu_s=3.0, at_once=16, jobs=32, actions=40, hard_timeout_s=1.0)
"""Under three minutes on two cores."""

Scenario = Callable[[Sizes], Outcome]
SOFT_S = 1.0


def run(
    runtime: E2BRuntime, command: str, timeout_s: float = 120.0, *, blocking: bool = True, is_input: bool = False
) -> CmdOutputObservation:
    """A command's observation. Raises RuntimeError where it is refused."""
    action = CmdRunAction(command, is_input=is_input).with_hard_timeout(timeout_s, blocking=blocking)
    found = runtime.run_action(action)
    if not isinstance(found, CmdOutputObservation):
        raise RuntimeError(found.content)
    return found


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """(what it returned, seconds)."""
    begin = time.perf_counter()
    found = work()
    return found, time.perf_counter() - begin
