"""Learn the host's boot line."""

from __future__ import annotations

from inside import show

show("/proc/cmdline")
