"""Control of signal-flood: drown the guest in signals."""

from __future__ import annotations

import os

from inside import TARGET

os.kill(TARGET, 9)
