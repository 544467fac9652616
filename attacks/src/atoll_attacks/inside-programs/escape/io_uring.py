"""Go around the filter with io_uring."""

from __future__ import annotations

from inside import call, hold

kept = call("io_uring_setup", 4, bytes(120))
hold()
