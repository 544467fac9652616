"""Runs scenarios one after the other and collects what they found. A scenario that fails is a finding, not an end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from atoll.stress import limits, many, scenarios
from atoll.stress.measure import Figures, Series
from atoll.stress.thresholds import Check, Threshold, checks
from atoll.stress.work import FULL, QUICK, Scenario, Sizes

__all__ = ["FULL", "QUICK", "SCENARIOS", "Report", "ScenarioReport", "Sizes", "run"]

SCENARIOS: Mapping[str, Scenario] = {
    "actions": scenarios.actions,
    "files": scenarios.files,
    "network": scenarios.network,
    "long_output": scenarios.long_output,
    "cpu": limits.cpu,
    "memory": limits.memory,
    "concurrent": many.concurrent,
}
"""Name → what is done; the docstring's first line is its title."""

_log = logging.getLogger("atoll.stress")


@dataclass(frozen=True)
class ScenarioReport:
    """One scenario's findings. `error` is why it could not be carried out, else ""."""

    name: str
    title: str
    seconds: float
    figures: Figures = field(default_factory=dict)
    series: Sequence[Series] = ()
    notes: Sequence[str] = ()
    checks: Sequence[Check] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and all(check.ok for check in self.checks)


@dataclass(frozen=True)
class Report:
    """A whole run."""

    began: datetime
    seconds: float
    scenarios: Sequence[ScenarioReport]

    @property
    def ok(self) -> bool:
        return all(scenario.ok for scenario in self.scenarios)


def run(
    names: Sequence[str],
    sizes: Sizes,
    thresholds: Mapping[str, Threshold],
    on_report: Callable[[ScenarioReport], None] | None = None,
) -> Report:
    """Carries out the named scenarios in the order of SCENARIOS. Raises ValueError for a name that is none."""
    if unknown := set(names) - set(SCENARIOS):
        raise ValueError(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    began, start = datetime.now(UTC), time.monotonic()
    found = []
    for name in SCENARIOS:
        if name in names:
            found.append(_one(name, sizes, thresholds))
            if on_report is not None:
                on_report(found[-1])
    return Report(began, time.monotonic() - start, found)


def _one(name: str, sizes: Sizes, thresholds: Mapping[str, Threshold]) -> ScenarioReport:
    scenario, start = SCENARIOS[name], time.monotonic()
    title = (scenario.__doc__ or name).splitlines()[0]
    try:
        outcome = scenario(sizes)
    except Exception as error:
        _log.info("scenario %s", name, exc_info=True)
        return ScenarioReport(
            name,
            title,
            time.monotonic() - start,
            checks=checks(name, {}, thresholds),
            error=f"{type(error).__name__}: {error}",
        )
    return ScenarioReport(
        name,
        title,
        time.monotonic() - start,
        outcome.figures,
        outcome.series,
        outcome.notes,
        checks(name, outcome.figures, thresholds),
    )
