"""A runtime's place in its tree of checkpoints: where it began or was last, what has happened since, the next one."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from atoll.runtime.branches import FILES, MEMORY, BranchTree, Checkpoint, EventLog
from atoll.runtime.config import SandboxConfig
from atoll.runtime.connected import ConnectedSandbox
from atoll.runtime.events.base import Event
from atoll.runtime.events.serialization import event_from_dict
from atoll.runtime.sandbox.embedded import default_data_dir

BRANCHES = "branches"


@dataclass(slots=True)
class Branching:
    """`at`: the checkpoint that it began at, or took last."""

    tree: BranchTree
    at: Checkpoint | None = None
    log: EventLog = field(default_factory=EventLog)

    def take(self, live: ConnectedSandbox, sid: str, template: str, note: str, *, jupyter: bool) -> Checkpoint:
        """See E2BRuntime.checkpoint."""
        live.keep_shell_state()
        try:
            made = live.box.snapshot()
        finally:
            live.drop_shell_state()
        before = self.at.event_count if self.at is not None else 0
        taken = Checkpoint(
            id=secrets.token_hex(6),
            parent=self.at.id if self.at is not None else None,
            sid=sid,
            snapshot=made.snapshot_id,
            keeps=FILES if made.why_no_memory else MEMORY,
            template=template,
            cwd=live.shell.cwd,
            created_at=datetime.now(UTC).isoformat(),
            event_count=before + self.log.count,
            note=note,
            why=made.why_no_memory,
            jupyter=jupyter,
        )
        try:
            self.tree.add(taken, self.log.read())
        except BaseException:
            with suppress(Exception):  # nobody would ever find it
                live.box.delete_snapshot(made.snapshot_id)
            raise
        self.log.begin_anew()
        self.at = taken
        return taken

    def history(self) -> list[Event]:
        """From the root on, with what is in no checkpoint yet."""
        kept = self.tree.history(self.at) if self.at is not None else []
        return kept + [event_from_dict(event) for event in self.log.read()]


def branching(directory: Path | None, checkpoint: Checkpoint | str | None) -> Branching:
    """Raises AgentRuntimeError: no such checkpoint."""
    tree = BranchTree(directory or default_data_dir(os.environ) / BRANCHES)
    at = tree.get(checkpoint) if isinstance(checkpoint, str) else checkpoint
    return Branching(tree, at, EventLog(at.event_count if at is not None else 0))


def settings_at(settings: SandboxConfig) -> SandboxConfig:
    """For a sandbox of a checkpoint: what was done to the first one is in its files, and its size is the snapshot's."""
    mounted = [item for item in (settings.volumes or "").split(",") if not item.strip().startswith(("/", ".", "~"))]
    changes = {"remote_runtime_resource_factor": 1, "enable_gpu": False, "runtime_extra_deps": None}
    return settings.model_copy(update={**changes, "volumes": ",".join(mounted) or None})
