"""Read a host file by its path."""

from __future__ import annotations

from inside import W, show

show(W["secret"])
