"""Attacks on the wall, as data: each is tried inside a sandbox and decided by canaries of the host.

`tests/security` runs all of them with their controls on every tier; `atoll doctor --attack` shows a user that they are
blocked on the user's own machine. What an attempt is: `attempt.py`; how the host tells: `judges.py`.
"""

from __future__ import annotations

from atoll_attacks.attempt import Attempt, Control, Family, Impossible, Outcome
from atoll_attacks.run import Controls, Range
from atoll_attacks.suite import attempts

__all__ = ["Attempt", "Control", "Controls", "Family", "Impossible", "Outcome", "Range", "attempts"]
