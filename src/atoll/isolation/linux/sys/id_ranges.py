"""Which host ids a sandbox's ids 0..65535 stand for: a range of its own, so that two sandboxes share no host user.

Ranges lie where systemd-nspawn puts those of containers too (524288 up to 1879048191, multiples of 65536), less what
/etc/subuid and /etc/subgid have given to users of the machine. The choice is random: several servers on one machine
need not know of each other, and a collision costs only this second wall, not the first.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

HOST_IDS_PER_SANDBOX = 65536

_FIRST_SLOT = 524288 // HOST_IDS_PER_SANDBOX
_END_SLOT = 1879048192 // HOST_IDS_PER_SANDBOX


def delegated(lines: Iterable[str]) -> set[int]:
    """The slots that lines of /etc/subuid (`name:start:count`) touch. Malformed lines are passed over."""
    slots: set[int] = set()
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[1].isdigit() and fields[2].isdigit() and int(fields[2]) > 0:
            start, last = int(fields[1]), int(fields[1]) + int(fields[2]) - 1
            slots.update(range(max(start // HOST_IDS_PER_SANDBOX, _FIRST_SLOT),
                               min(last // HOST_IDS_PER_SANDBOX, _END_SLOT - 1) + 1))  # fmt: skip
    return slots


def read_delegated() -> set[int]:
    """The slots that this machine has given to its users."""
    slots: set[int] = set()
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path) as source:
                slots |= delegated(source)
        except OSError:
            continue
    return slots


class IdRanges:
    """The ranges in use by this zygote's sandboxes."""

    def __init__(self, taken: Iterable[int], randomness: random.Random | None = None) -> None:
        self._taken = set(taken)
        self._random = randomness or random.SystemRandom()

    def take(self) -> int:
        """The first host id of a free range."""
        while True:
            slot = self._random.randrange(_FIRST_SLOT, _END_SLOT)
            if slot not in self._taken:
                self._taken.add(slot)
                return slot * HOST_IDS_PER_SANDBOX

    def give_back(self, base: int) -> None:
        """The range may be used again."""
        self._taken.discard(base // HOST_IDS_PER_SANDBOX)
