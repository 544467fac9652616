"""Make the guest wait for a writer that never comes."""

from __future__ import annotations

import os
import time

os.rename("/etc/passwd", "/etc/passwd.kept")
os.mkfifo("/etc/passwd")
try:
    time.sleep(1)
finally:
    os.rename("/etc/passwd.kept", "/etc/passwd")
