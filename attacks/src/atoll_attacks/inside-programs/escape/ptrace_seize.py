"""Take over the guest without stopping it."""

from __future__ import annotations

from inside import TARGET, call, hold

call("ptrace", 0x4206, TARGET, 0, 0)
hold()
