"""Starve a process of the host."""

from __future__ import annotations

from inside import W, call

call("setpriority", 0, W["victim"], 19)
