"""A tier's own directory, and the name under which its cgroups are found.

The cgroup base, `atoll-<digest>/<tier>`, carries a digest of the directory that the tiers of one server have in common:
several servers on one machine never touch each other's groups, and all tiers of one share a bound.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path


class RunDir:
    """One tier's directory of one server: for what belongs to no single sandbox."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        real = Path(os.path.realpath(self.path))
        digest = hashlib.sha256(os.fsencode(real.parent)).hexdigest()[:12]
        self.cgroup_base = f"atoll-{digest}/{real.name}"

    def prepare(self) -> None:
        """Makes it. Raises OSError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self.path / "live", ignore_errors=True)  # records of sandboxes, of a version before 2
