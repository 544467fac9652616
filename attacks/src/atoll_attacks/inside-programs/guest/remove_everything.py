"""Leave the guest without its files."""

from __future__ import annotations

import subprocess

# All but /usr/share, which is most of it and nobody's program.
gone = "$(ls -d /* /usr/* | grep -vE '^/(usr|proc|sys|dev|usr/share)$')"
subprocess.run(f"rm -rf --no-preserve-root {gone} 2>/dev/null", shell=True)
