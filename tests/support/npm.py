"""The npm packages that tests drive: the published SDKs and the command line, as the lock file pins them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from support.python_environment import cache_dir, locked

JS = Path(__file__).parent.parent / "integration" / "js"


def install_node_modules() -> Path:
    """Installs what the lock file says, once, into the git-ignored `node_modules`; skips where npm cannot."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: the JavaScript SDKs cannot be driven")
    packages, done = JS / "package-lock.json", JS / "node_modules" / ".installed"
    with locked(cache_dir() / "node-modules"):
        if not done.exists() or done.read_text() != packages.read_text():
            command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            install = subprocess.run(command, cwd=JS, capture_output=True, text=True, timeout=300, check=False)
            if install.returncode != 0:
                pytest.skip(f"npm could not install the published SDKs: {install.stderr.strip()[-300:]}")
            done.write_text(packages.read_text())
    return JS / "node_modules"
