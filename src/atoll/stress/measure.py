"""What a scenario found: figures by name, series for plots, notes for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers over time or over counts. `unit` is that of `values`; `xs` default to 1, 2, 3, …"""

    title: str
    unit: str
    values: Sequence[float]
    x_title: str = ""
    xs: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one scenario."""

    figures: Figures
    series: Sequence[Series] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[min(len(ordered), int(rank)) - 1]


def spread(prefix: str, values: Sequence[float]) -> dict[str, float]:
    """p50, p99 and the largest of `values`, under names that begin with `prefix`."""
    named = {"p50": percentile(values, 50), "p99": percentile(values, 99), "max": max(values, default=0.0)}
    return {f"{prefix}_{name}": value for name, value in named.items()}
