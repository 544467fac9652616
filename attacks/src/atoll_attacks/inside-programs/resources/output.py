"""Drown the server in output."""

from __future__ import annotations

import os

block = b"x" * 65535 + b"\n"
for _ in range(300):
    os.write(1, block)
print("DONE", flush=True)
