"""Read where another process's memory lies."""

from __future__ import annotations

from inside import TARGET, show

show(f"/proc/{TARGET}/maps")
