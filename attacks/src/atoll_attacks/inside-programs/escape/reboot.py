"""Restart the machine."""

from __future__ import annotations

from inside import call

call("reboot", 0xFEE1DEAD, 672274793, 0x1234567, None)
