"""Control of write-absolute: write a host path."""

from __future__ import annotations

from inside import W

open(W["drop"] + "/written", "w").close()
