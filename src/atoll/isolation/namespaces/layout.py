"""What this tier keeps in its run directory.

run_dir/prepared/<group>/   the layer of a sandbox that waits to be asked for
run_dir/disks/<n>.img       disks that wait to be used
run_dir/zygote.log          what the zygote says
"""

from __future__ import annotations

from pathlib import Path

from atoll.isolation.linux.run_dir import RunDir


class RunLayout(RunDir):
    """Paths in one run directory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.prepared = self.path / "prepared"
        self.disks = self.path / "disks"
        self.zygote_log = self.path / "zygote.log"

    def prepare(self) -> None:
        """Makes the directories. Raises OSError."""
        super().prepare()
        self.disks.mkdir(mode=0o700, exist_ok=True)
