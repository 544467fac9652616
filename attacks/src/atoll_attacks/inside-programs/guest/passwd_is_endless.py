"""Fill the guest's memory."""

from __future__ import annotations

import os
import time

os.rename("/etc/passwd", "/etc/passwd.kept")
os.symlink("/dev/zero", "/etc/passwd")
time.sleep(0.5)
os.rename("/etc/passwd.kept", "/etc/passwd")
