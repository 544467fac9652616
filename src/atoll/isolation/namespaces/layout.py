"""What this tier keeps in its run directory, and the name under which its cgroups are found.

    run_dir/live/<group>.json   one record per sandbox: written before it runs, removed when it is freed
    run_dir/prepared/<group>/   the layer of a sandbox that waits to be asked for
    run_dir/disks/<n>.img       disks that wait to be used
    run_dir/zygote.log          what the zygote says

The cgroup base carries a digest of the run directory: several servers on one machine never touch each other's groups.
"""

from __future__ import annotations

from pathlib import Path

from atoll.isolation.linux.run_records import RunRecords


class RunLayout(RunRecords):
    """Paths and records of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir)
        self.prepared = self.run_dir / "prepared"
        self.disks = self.run_dir / "disks"
        self.zygote_log = self.run_dir / "zygote.log"

    def prepare(self) -> None:
        """Makes the directories. Raises OSError."""
        super().prepare()
        self.disks.mkdir(mode=0o700, exist_ok=True)
