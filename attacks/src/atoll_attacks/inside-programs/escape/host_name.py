"""Rename the machine."""

from __future__ import annotations

from inside import call

call("sethostname", b"owned", 5)
