"""Attempts on the agent's process, which runs on the host: what a sandbox or a repository gives it to read.

The runtime reads it in a process of its own, which may work and grow only so much; the control reads it as one does.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

from atoll_attacks.attempt import Attempt, Control, Deed, Family
from atoll_attacks.outside.runtime import READY
from atoll_attacks.scene import Scene

_WORK_S, _MIB = {"atoll": 12, "naive": 3}, 1 << 20
_MEMORY_MIB = 1200
"""Of addresses, which a Python with the SDK has many of that it never touches."""
_WITHIN_S = 120
_STARTS = 2


def _reads(how: str, what: str) -> Callable[[Scene], str]:
    def act(scene: Scene) -> str:
        def bound() -> None:
            resource.setrlimit(resource.RLIMIT_CPU, (_WORK_S[how], _WORK_S[how] + 1))
            resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_MIB * _MIB, _MEMORY_MIB * _MIB))

        words = [sys.executable, "-m", "atoll_attacks.outside.runtime", how, what]
        said = ""
        for _ in range(_STARTS):
            try:
                done = subprocess.run(
                    words, capture_output=True, text=True, timeout=_WITHIN_S, check=False, preexec_fn=bound
                )
            except subprocess.TimeoutExpired:
                scene.facts["status"] = "it never ended"
                continue
            scene.facts["status"], said = done.returncode, done.stdout + done.stderr
            if how == "naive" or READY in done.stdout:
                break  # else no sandbox was to be had in time, on a very busy machine
        return said

    return act


def _harmed(scene: Scene) -> str | None:
    """It ended by a signal (too much work), by an error (too much memory), or never."""
    if scene.facts["status"] == 0 and "DONE" in scene.output:
        return None
    return f"the agent's process ended with {scene.facts['status']}: {scene.output[-200:]}"


def _attempt(name: str, goal: str) -> Attempt:
    act, naive = Deed(_reads("atoll", name)), Deed(_reads("naive", name))
    return Attempt(name, Family.AGENT, goal, act, _harmed, Control(naive))


ATTEMPTS: tuple[Attempt, ...] = (
    _attempt("terminal-bytes", "fill the agent's memory by what a terminal shows"),
    _attempt("archive", "fill the host's disk by an archive of a sandbox"),
    _attempt("microagent", "have the agent read a repository's instructions for ever"),
)
