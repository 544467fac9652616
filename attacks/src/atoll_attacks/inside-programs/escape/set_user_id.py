"""Be the host's root by a set-user-id program."""

from __future__ import annotations

import os
import shutil

from inside import hold

shutil.copy("/bin/sleep", "/tmp/rooted")
os.chown("/tmp/rooted", 0, 0)
os.chmod("/tmp/rooted", 0o6755)
os.setuid(0)
hold()
