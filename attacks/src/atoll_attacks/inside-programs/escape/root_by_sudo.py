"""Be the host's root by sudo."""

from __future__ import annotations

import os
import sys

from inside import TAG, TARGET, hold

if TARGET == 1:
    os.execvp("sudo", ["sudo", sys.executable or "python3", "-c", "import time; time.sleep(2)", TAG])
hold()
