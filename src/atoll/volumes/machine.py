"""The volumes of this machine, as a node uses them: `store` and `servers` together, for an event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from atoll.isolation.base import DiskUse
from atoll.model.errors import NotOffered, PlatformError
from atoll.volumes.servers import VolumeServers
from atoll.volumes.store import VolumeRecord, VolumeStore


class MachineVolumes:
    """Implements node.volumes.NodeVolumes."""

    def __init__(self, data_dir: Path) -> None:
        self._store = VolumeStore(data_dir / "volumes")
        self._servers = VolumeServers(self._store)
        self._why_not: str | None = None

    def open(self) -> None:
        """See NodeVolumes."""
        self._store.open()

    def ids(self) -> list[str]:
        """See NodeVolumes."""
        return [record.volume_id for record in self._store.all()]

    async def create(self, volume_id: str, size_mib: int, token_digest: str) -> None:
        """See NodeVolumes."""
        if self._why_not is None:
            self._why_not = await asyncio.to_thread(self._store.why_not)
        if self._why_not:
            raise NotOffered(f"this machine cannot have volumes: {self._why_not}", hint="see `atoll doctor`")
        try:
            await asyncio.to_thread(self._store.create, VolumeRecord(volume_id, size_mib, token_digest))
        except OSError as error:
            raise PlatformError(f"the volume cannot be made: {error}") from error

    async def remove(self, volume_id: str) -> None:
        """See NodeVolumes."""
        await self._servers.end(volume_id)
        try:
            await asyncio.to_thread(self._store.remove, volume_id)
        except OSError as error:
            raise PlatformError(f"volume {volume_id!r} cannot be removed: {error}") from error

    @asynccontextmanager
    async def attached(self, volume_ids: Sequence[str]) -> AsyncIterator[list[str]]:
        """See NodeVolumes."""
        descriptors: list[int] = []
        names: list[str] = []
        try:
            for volume_id in volume_ids:
                device = await asyncio.to_thread(self._store.attach, volume_id)
                names.append(device.name)
                descriptors.append(device.descriptor)
            yield names
        except OSError as error:
            raise PlatformError(f"a volume cannot be mounted: {error}") from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def uses(self) -> dict[str, DiskUse]:
        """See NodeVolumes."""
        return await asyncio.to_thread(self._store.uses)

    async def allow(self, volume_id: str, more: int | None) -> None:
        """See NodeVolumes."""
        await asyncio.to_thread(self._store.allow, volume_id, more)

    async def dial(self, volume_id: str) -> socket.socket:
        """See NodeVolumes."""
        return await self._servers.dial(volume_id)

    async def aclose(self) -> None:
        """See NodeVolumes."""
        await self._servers.aclose()
