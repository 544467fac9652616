"""Samples taken in turns, kept raw, told as percentiles. Decides nothing: a benchmark here never passes or fails."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Sample = Callable[[], float]
"""Does the thing once and returns what it took, in the row's unit."""


@dataclass(frozen=True, slots=True)
class Row:
    """One raw measurement. `unit` is ms, MB, /s or MB/s."""

    benchmark: str
    subject: str
    n: int
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Summary:
    benchmark: str
    subject: str
    unit: str
    samples: int
    p50: float
    p95: float


def timed(action: Callable[[], object]) -> float:
    """Milliseconds that `action` took."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def in_turns(benchmark: str, subjects: dict[str, Sample], rounds: int, unit: str, warm_up: int = 3) -> list[Row]:
    """Each round takes one sample of every subject, in rotating order: a slow minute of the machine hits all alike."""
    names = list(subjects)
    for _ in range(warm_up):
        for name in names:
            subjects[name]()
    rows: list[Row] = []
    gc.collect()
    gc.disable()
    try:
        for n in range(rounds):
            turn = names[n % len(names) :] + names[: n % len(names)]
            rows += [Row(benchmark, name, n, subjects[name](), unit) for name in turn]
    finally:
        gc.enable()
    return rows


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank; of one value, that value."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(percent / 100 * len(ordered) + 0.5) - 1))]


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """One line per benchmark and subject, in order of first appearance."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.benchmark, row.subject, row.unit), []).append(row.value)
    return [
        Summary(benchmark, subject, unit, len(values), statistics.median(values), percentile(values, 95))
        for (benchmark, subject, unit), values in groups.items()
    ]
