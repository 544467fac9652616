"""The directories of this node's sandboxes: made ahead, taken, removed in the background.

<data_dir>/sandboxes/<id>/   one sandbox's own directory, 0700 (`isolation.directory`)
<data_dir>/ready/            directories of sandboxes to come
<data_dir>/trash/            directories of dead sandboxes, until they are removed
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path

import structlog

from atoll.isolation import directory
from atoll.isolation.directory import VERSION, Newer, Recorded
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import SandboxSpec
from atoll.model.sealing import Seal
from atoll.node.ready import ReadyDirectories
from atoll.node.trash import Trash

_TRASH_GRACE_S = 10.0

_log = structlog.get_logger("atoll.node")


class SandboxDirectories:
    """All below `data_dir`. One server at a time. `seal`: in which what is secret is kept; None: as it is."""

    def __init__(self, data_dir: Path, seal: Seal | None = None) -> None:
        self.seal = seal or Seal()
        self.root = data_dir / "sandboxes"
        self.trash = Trash(data_dir / "trash")
        self._ready = ReadyDirectories(data_dir / "ready")

    def open(self) -> int:
        """How many an earlier server left in the trash. Raises OSError."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        left = self.trash.open()
        self._ready.open()
        return left

    def tasks(self) -> Mapping[str, Coroutine[None, None, None]]:
        """Name → work that runs until it is cancelled."""
        return {"trash": self.trash.run(), "ready directories": self._ready.run()}

    def close(self) -> None:
        """Removes what was made ahead. Idempotent."""
        self._ready.close()

    def of(self, sandbox_id: str) -> Path:
        """Where that sandbox's directory is or will be."""
        return self.root / sandbox_id

    def make(self, path: Path) -> None:
        """Raises OSError (FileExistsError: there is one)."""
        self._ready.take(path)

    def write_spec(self, spec: SandboxSpec, layers: Sequence[Path]) -> None:
        """Raises OSError."""
        directory.write_spec(self.of(spec.sandbox_id), spec, layers, self.seal.close_spec)

    def rewrite_spec(self, spec: SandboxSpec, layers: Sequence[Path]) -> None:
        """Another in place of the earlier. Raises OSError."""
        directory.rewrite_spec(self.of(spec.sandbox_id), spec, layers, self.seal.close_spec)

    def discard(self, path: Path) -> None:
        """Gone from its place at once; removed in the background."""
        self.trash.put(path)

    async def settle(self) -> None:
        """Waits for the trash to be empty, at most _TRASH_GRACE_S; the next start removes the rest."""
        try:
            async with asyncio.timeout(_TRASH_GRACE_S):
                await self.trash.settled()
        except TimeoutError:
            _log.info("trash.left_for_next_start")

    def read_all(self) -> dict[str, Recorded | Newer | None]:
        """Sandbox id → what its directory says. Raises OSError for a record that is there and cannot be read."""
        return {path.name: self._read(path) for path in sorted(self.root.iterdir()) if path.is_dir()}

    def network_of(self, spec: SandboxSpec) -> NetworkPolicy:
        """What it may reach now, where that was changed while it ran; else what was asked for."""
        found = self._read(self.of(spec.sandbox_id))
        return found.network if isinstance(found, Recorded) else spec.network

    def change_network(self, sandbox_id: str, network: NetworkPolicy) -> None:
        """What it may reach from now on, sealed, for the server that adopts it. Raises OSError."""
        seal = self.seal
        directory.change_network(self.of(sandbox_id), seal.close_rules(network), seal.open_spec, seal.close_spec)

    def _read(self, path: Path) -> Recorded | Newer | None:
        return directory.read(path, self.seal.open_spec)

    def upgrade(self, found: Recorded) -> None:
        """Writes a record of an earlier version anew. A failure is logged: it can still be read as it is."""
        if found.version < VERSION:
            try:
                directory.upgrade(self.of(found.spec.sandbox_id), found, self.seal.close_spec)
            except OSError as error:
                _log.warning("sandbox.record_not_upgraded", sandbox_id=found.spec.sandbox_id, error=str(error))
