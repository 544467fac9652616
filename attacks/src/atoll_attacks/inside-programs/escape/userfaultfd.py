"""Stop the kernel in the middle of a copy."""

from __future__ import annotations

from inside import call, hold

kept = call("userfaultfd", 0)
hold()
