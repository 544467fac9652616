"""Leave the guest without users."""

from __future__ import annotations

import os
import time

os.rename("/etc/passwd", "/etc/passwd.kept")
time.sleep(0.3)
os.rename("/etc/passwd.kept", "/etc/passwd")
