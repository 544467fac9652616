"""A team's volumes: made, found, removed. What is in them never passes here: the edge leads to their node.

A volume is written down before its node makes it, and until its node has removed it; what was cut off in between is
removed at the next start.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from uuid import uuid4

import structlog

from atoll.control.access.auth import Caller
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.orders import Policy
from atoll.control.store.volumes import Volume, VolumeTables
from atoll.model.errors import AtollError, Conflict, InvalidRequest, NodeUnreachable, NotFound, QuotaExceeded
from atoll.model.volume import VolumeMount, check_paths, check_volume_name, is_volume_id

MAX_VOLUMES = 100
"""Of one team."""

_log = structlog.get_logger("atoll.control")


class VolumeService:
    """See the module."""

    def __init__(
        self, tables: VolumeTables, nodes: NodeRegistry, policy: Policy, clock: Clock, background: Background
    ) -> None:
        self._tables = tables
        self._nodes = nodes
        self._policy = policy
        self._clock = clock
        self._background = background
        self._turn = asyncio.Lock()
        """Of who takes room."""

    async def create(self, caller: Caller, name: str) -> Volume:
        """An empty one. Raises InvalidRequest, Conflict (a name twice), QuotaExceeded, NotOffered, PlatformError."""
        check_volume_name(name)
        nodes = self._nodes.worth_asking()
        if not nodes:
            raise NodeUnreachable("no node is there that could keep a volume")
        node_id = min(nodes)
        size = self._policy.volume_mib
        volume = Volume(str(uuid4()), caller.team_id, name, node_id, size, self._clock.now(), secrets.token_urlsafe(32))
        async with self._turn:
            await self._check_room(caller.team_id, node_id, size)
            await self._tables.begin(volume)
        return await asyncio.shield(self._background.begin(self._make(volume)))

    async def get(self, caller: Caller, volume_id: str) -> Volume:
        """Raises NotFound: unknown, or another team's."""
        found = await self._tables.find(caller.team_id, volume_id) if is_volume_id(volume_id) else None
        if found is None:
            raise NotFound(f"volume {volume_id[:100]!r} not found")
        return found

    async def all(self, caller: Caller) -> list[Volume]:
        """The team's, by name."""
        return await self._tables.of_team(caller.team_id)

    async def remove(self, caller: Caller, volume_id: str) -> None:
        """With its contents. Raises NotFound, Conflict (a sandbox has it mounted), PlatformError."""
        volume = await self.get(caller, volume_id)
        if users := await self._tables.mounted_in(caller.team_id, volume_id):
            raise Conflict(
                f"volume {volume.name!r} is mounted in sandbox {users[0]!r}", hint="kill it first, paused ones too"
            )
        await asyncio.shield(self._background.begin(self._unmake(volume)))

    async def mounts(self, team_id: str, wanted: Sequence[tuple[str, str]]) -> tuple[list[VolumeMount], str | None]:
        """What a create names as (name, path), and the node where that is; None: anywhere. Raises InvalidRequest."""
        if not wanted:
            return [], None
        paths = check_paths([path for _, path in wanted])
        found = await self._tables.named(team_id, {name for name, _ in wanted})
        mounts = []
        for (name, _), path in zip(wanted, paths, strict=True):
            if name not in found:
                raise InvalidRequest(
                    f"volumeMounts: volume {name[:100]!r} not found", hint="make it first: POST /volumes"
                )
            mounts.append(VolumeMount(found[name].volume_id, name, path))
        nodes = {volume.node_id for volume in found.values()}
        if len(nodes) > 1:
            raise InvalidRequest("volumeMounts: these volumes are on different nodes, and no sandbox can have both")
        return mounts, nodes.pop()

    async def recover(self) -> None:
        """What an earlier server left unfinished is removed. A node that is not there is asked at the next start."""
        for volume in await self._tables.unfinished():
            try:
                await self._unmake(volume)
            except AtollError as error:
                _log.warning("volume.not_removed", volume_id=volume.volume_id, error=str(error))

    async def _make(self, volume: Volume) -> Volume:
        digest = hashlib.sha256((volume.token or "").encode()).hexdigest()
        try:
            await self._nodes.client(volume.node_id).create_volume(volume.volume_id, volume.size_mib, digest)
        except AtollError:
            await self._unmake(volume)
            raise
        await self._tables.made(volume.volume_id)
        return volume

    async def _unmake(self, volume: Volume) -> None:
        await self._tables.going(volume.volume_id)
        try:
            await self._nodes.client(volume.node_id).remove_volume(volume.volume_id)
        except Conflict:
            await self._tables.made(volume.volume_id)
            raise
        await self._tables.remove(volume.volume_id)

    async def _check_room(self, team_id: str, node_id: str, size_mib: int) -> None:
        team, node = await self._tables.sums(team_id=team_id), await self._tables.sums(node_id=node_id)
        if team.count >= MAX_VOLUMES:
            raise QuotaExceeded(f"a team may have {MAX_VOLUMES} volumes", hint="destroy one")
        most = self._policy.volumes_mib
        if most is not None and node.size_mib + size_mib > most:
            raise QuotaExceeded(
                f"all volumes together may have {most} MiB; they have {node.size_mib}, this one would have {size_mib}",
                hint="destroy some, or raise ATOLL_TOTAL_VOLUMES_MIB",
            )
