"""Thresholds of figures: the defaults, those that the user sets, and what became of them. Pure.

concurrent.success_rate>=0.99      concurrent.job_s_p99<=30      files.edits_per_s>=50
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_FORM = re.compile(r"\s*([a-z_]+\.[a-z0-9_]+)\s*(<=|>=)\s*([-+.\deE]+)\s*")


@dataclass(frozen=True, slots=True)
class Threshold:
    """`at_least`: the figure must not be smaller; else it must not be larger."""

    limit: float
    at_least: bool

    def met(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Check:
    """One threshold and the figure; `value` is None where the scenario did not find it."""

    name: str
    threshold: Threshold
    value: float | None

    @property
    def ok(self) -> bool:
        return self.value is not None and self.threshold.met(self.value)


def _least(limit: float) -> Threshold:
    return Threshold(limit, True)


def _most(limit: float) -> Threshold:
    return Threshold(limit, False)


DEFAULTS: Mapping[str, Threshold] = {
    "memory.stopped": _least(1),
    "memory.usable_after": _least(1),
    "cpu.share": _most(1.15),
    "files.correct": _least(1),
    "files.edits_per_s": _least(10),
    "network.success_rate": _least(1),
    "network.request_ms_p99": _most(500),
    "concurrent.success_rate": _least(1),
    "concurrent.job_s_p99": _most(120),
    "long_output.correct": _least(1),
    "long_output.sandbox_growth_mib": _most(64),
    "long_output.client_growth_mib": _most(128),
    "actions.success_rate": _least(1),
}
"""Right behaviour is demanded exactly; times only such that a slow machine under load meets them."""


def parse_thresholds(lines: Iterable[str]) -> dict[str, Threshold]:
    """The defaults, changed by `name>=number` and `name<=number`; `#` begins a comment. Raises ValueError."""
    chosen = dict(DEFAULTS)
    for line in lines:
        text = line.partition("#")[0]
        if not text.strip():
            continue
        found = _FORM.fullmatch(text)
        try:
            if found is None:
                raise ValueError(text)
            chosen[found[1]] = Threshold(float(found[3]), found[2] == ">=")
        except ValueError:
            raise ValueError(
                f"{text.strip()!r} is no threshold: write scenario.figure>=number or scenario.figure<=number"
            ) from None
    return chosen


def checks(scenario: str, figures: Mapping[str, float], thresholds: Mapping[str, Threshold]) -> list[Check]:
    """Every threshold of a scenario."""
    return [
        Check(name, threshold, figures.get(name.partition(".")[2]))
        for name, threshold in thresholds.items()
        if name.partition(".")[0] == scenario
    ]
