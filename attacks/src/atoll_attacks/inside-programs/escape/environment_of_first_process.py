"""Read the server's environment."""

from __future__ import annotations

from inside import TARGET, show

show(f"/proc/{TARGET}/environ")
