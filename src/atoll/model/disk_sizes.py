"""The sizes that a sandbox's disk may have: few, so that an empty file system of each is made once and kept.

    16, 20, 24, 32, 40, 48, 64, 80, 96, 128 … MiB: a power of two, and once more a quarter and a half of it

A size that was asked for is rounded up to the next of them, by a third at most, and that one is shown everywhere: the
sandbox's file system, its limits in every answer, and what counts against a maximum.
"""

from __future__ import annotations

SMALLEST_MIB = 16


def rounded_disk_mib(asked_mib: int, most_mib: int | None = None) -> int:
    """The size that is made for `asked_mib`; `most_mib`, a maximum, is a size of its own and never exceeded."""
    power = 1 << (max(asked_mib, SMALLEST_MIB).bit_length() - 1)
    steps = (power, power * 5 // 4, power * 3 // 2, power * 2)
    rounded = next(step for step in steps if step >= asked_mib)
    return rounded if most_mib is None else min(rounded, most_mib)
