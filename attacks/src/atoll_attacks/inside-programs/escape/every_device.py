"""Open a device of the host."""

from __future__ import annotations

import os

from inside import attempt, hold

kept = []
for root, _, names in os.walk("/dev"):
    for name in names:
        kept.append(attempt(os.open, os.path.join(root, name), os.O_RDONLY | os.O_NONBLOCK))
hold()
