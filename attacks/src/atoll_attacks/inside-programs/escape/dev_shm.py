"""Read POSIX shared memory of the host."""

from __future__ import annotations

from inside import W, show

show(W["dev_shm"])
