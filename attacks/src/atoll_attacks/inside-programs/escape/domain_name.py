"""Rename the machine's domain."""

from __future__ import annotations

from inside import call

call("setdomainname", b"owned", 5)
