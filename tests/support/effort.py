"""Measures work on hostile bytes so that a busy machine changes nothing: CPU time of this thread, sizes compared."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

SMALL_S = 0.05
"""CPU time below which growth is not judged: it is harmless, and too short to measure."""
MOST = 9.0
"""Growth of the time for four times the size: 4 where it is linear, 16 where it is quadratic."""


def cpu_seconds(work: Callable[[], object], times: int = 3) -> float:
    """The least of a few runs."""
    spent = []
    for _ in range(times):
        began = time.thread_time()
        work()
        spent.append(time.thread_time() - began)
        if spent[-1] > 5:
            break
    return min(spent)


def assert_linear(work: Callable[[int], object], size: int) -> None:
    """Four times as much takes about four times as long; `size` is a quarter of what is tried."""
    large = cpu_seconds(lambda: work(4 * size), 1)
    if large < SMALL_S:
        return
    large, small = min(large, cpu_seconds(lambda: work(4 * size), 2)), cpu_seconds(lambda: work(size))
    assert large < SMALL_S or large < MOST * small, f"{size} takes {small:.4f} s, four times as much {large:.4f} s"


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that Python held for it at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
