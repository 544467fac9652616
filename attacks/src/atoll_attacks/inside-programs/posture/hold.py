"""A process that does nothing, for the host to look at."""

from __future__ import annotations

from inside import hold

hold()
