"""Take over the guest."""

from __future__ import annotations

from inside import TARGET, call, hold

call("ptrace", 16, TARGET, 0, 0)
hold()
