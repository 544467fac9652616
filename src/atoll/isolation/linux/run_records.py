"""What a tier writes down about the sandboxes it has made, and the name under which its cgroups are found.

    run_dir/live/<group>.json   one record per sandbox: written before it runs, removed when it is freed

The cgroup base carries a digest of the run directory: several servers on one machine never touch each other's groups.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RunRecords:
    """The records of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir.absolute()
        self.live = self.run_dir / "live"
        digest = hashlib.sha256(os.fsencode(os.path.realpath(self.run_dir))).hexdigest()[:12]
        self.cgroup_base = f"atoll-{digest}"

    def prepare(self) -> None:
        """Makes the directories. Raises OSError."""
        self.live.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write_record(self, group: str, record: dict[str, Any]) -> None:
        """No sync: a record is of no use after a crash of the machine. Raises OSError."""
        descriptor = os.open(self.live / f"{group}.json", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(record).encode())
        finally:
            os.close(descriptor)

    def records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(group, record) of every sandbox made and not yet freed; {} as record for a file that cannot be read."""
        for path in sorted(self.live.glob("*.json")):
            record: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):
                found = json.loads(path.read_bytes())
                record = found if isinstance(found, dict) else {}
            yield path.stem, record

    def forget(self, group: str) -> None:
        """Removes the record; none there is fine."""
        with contextlib.suppress(FileNotFoundError):
            (self.live / f"{group}.json").unlink()
