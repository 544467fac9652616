"""The volumes of this machine, as a node uses them: `store` and `servers` together, for an event loop."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from atoll.isolation.base import DiskUse
from atoll.isolation.linux.disk.volume import Device
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
        try:
            await asyncio.to_thread(self._store.remove, volume_id)
        except OSError as error:
            raise PlatformError(f"volume {volume_id!r} cannot be removed: {error}") from error
        await self._servers.end(volume_id)  # none is started any more

    @asynccontextmanager
    async def attached(self, volume_ids: Sequence[str]) -> AsyncIterator[list[str]]:
        """See NodeVolumes."""
        devices: list[Device] = []
        try:
            for volume_id in volume_ids:
                devices.append(await self._attach(volume_id))  # noqa: PERF401 (closed even if the next fails)
            yield [device.name for device in devices]
        finally:
            for device in devices:
                os.close(device.descriptor)

    async def _attach(self, volume_id: str) -> Device:
        """Cancelled, it keeps no descriptor either."""
        attaching = asyncio.ensure_future(asyncio.to_thread(self._store.attach, volume_id))
        try:
            return await asyncio.shield(attaching)
        except asyncio.CancelledError:
            attaching.add_done_callback(_let_go)
            raise
        except OSError as error:
            raise PlatformError(f"volume {volume_id!r} cannot be mounted: {error}") from error

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


def _let_go(attached: asyncio.Future[Device]) -> None:
    if not attached.cancelled() and attached.exception() is None:
        os.close(attached.result().descriptor)
