"""Use a working directory outside."""

from __future__ import annotations

from inside import W, attempt, show

for up in ("", "../" * 12, "/proc/self/cwd/" + "../" * 12):
    attempt(show, up + W["secret"].lstrip("/"))
