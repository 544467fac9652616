"""Be a user whom nobody mapped."""

from __future__ import annotations

import os

from inside import attempt, hold

for uid in (65536, 100000, 524288, 4294967294):
    attempt(os.setresuid, uid, uid, uid)
hold()
