"""Closes what a process has inherited and does not need."""

from __future__ import annotations

from atoll.isolation.linux.sys import syscalls


def close_all_but(keep: set[int]) -> None:
    """Closes every other descriptor, known to Python or not."""
    start = 0
    for descriptor in [*sorted(keep), 0x7FFFFFFF]:
        if descriptor > start:
            # Not os.closerange: where the interpreter was built without close_range it would count to two billion.
            syscalls.call("close_range", start, descriptor - 1, 0)
        start = descriptor + 1
