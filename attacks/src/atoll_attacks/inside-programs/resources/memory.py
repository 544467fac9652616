"""Take all memory."""

from __future__ import annotations

from inside import hold

kept = []
print("begin", flush=True)
for _ in range(40):
    kept.append(b"x" * (10 << 20))
print("DONE", flush=True)
hold()
