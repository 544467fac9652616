"""What a sandbox sees of the machine that never changes, and which of its processors a sandbox runs on.

Programs ask how many processors they may use and start as many threads: the answer has to be the sandbox's limit, and
to most of them it is given by the affinity. It is no wall (a program may widen its own); that is the quota's part. The
processors that fewest sandboxes were given come first, so that the load is spread over the machine.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path


class Machine:
    """Reads at once all that it needs. `usable`: the processors, else those that the caller may use."""

    def __init__(self, usable: Iterable[int] | None = None, cpuinfo: str | None = None) -> None:
        self._usable = tuple(sorted(os.sched_getaffinity(0) if usable is None else usable))
        self._given: Counter[int] = Counter()
        self._described = _described(Path("/proc/cpuinfo").read_text() if cpuinfo is None else cpuinfo)
        self.controllers = _counted_as_one(_read("/proc/cgroups"))
        """/proc/cgroups as on a machine of its own: how many groups there are is not shown."""

    def take(self, count: int) -> tuple[int, ...]:
        """So many, or all that there are; to be given back."""
        if count >= len(self._usable):
            return self._usable
        order = sorted(self._usable, key=lambda number: (self._given[number], random.random()))
        chosen = tuple(sorted(order[:count]))
        self._given.update(chosen)
        return chosen

    def give_back(self, chosen: tuple[int, ...]) -> None:
        """What `take` gave."""
        if len(chosen) < len(self._usable):
            self._given.subtract(chosen)

    def describe(self, chosen: Iterable[int]) -> Mapping[int, str]:
        """Each with its part of /proc/cpuinfo, as it was when the server started."""
        return {number: self._described.get(number, f"processor\t: {number}\n") for number in chosen}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _counted_as_one(controllers: str) -> str:
    return re.sub(r"^([^#\s]+\t\d+\t)\d+\t", r"\g<1>1\t", controllers, flags=re.M)


def _described(cpuinfo: str) -> dict[int, str]:
    parts = (f"{part}\n" for part in cpuinfo.strip().split("\n\n"))
    return {int(found[1]): part for part in parts if (found := re.match(r"processor\s*:\s*(\d+)\n", part))}
