"""The same by the task directory."""

from __future__ import annotations

import os

from inside import TARGET, attempt, show

for task in os.listdir(f"/proc/{TARGET}/task"):
    attempt(show, f"/proc/{TARGET}/task/{task}/environ")
