"""What a node needs of its machine's volumes, and a machine without any. `atoll.volumes` is the real thing.

A volume is reached as a sandbox is: by a route, under its own id, which no sandbox's id can be (it is a UUID).
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from atoll.isolation.base import DiskUse
from atoll.model.errors import NotFound, NotOffered


class NodeVolumes(Protocol):
    """All calls may be made at any time after `open`."""

    def open(self) -> None:
        """Finds what is there. Raises OSError."""
        ...

    def ids(self) -> list[str]:
        """Of all that are there."""
        ...

    async def create(self, volume_id: str, size_mib: int, token_digest: str) -> None:
        """See NodeClient.create_volume."""
        ...

    async def remove(self, volume_id: str) -> None:
        """What has it mounted keeps it; its contents can be reached no more. Idempotent."""
        ...

    def attached(self, volume_ids: Sequence[str]) -> AbstractAsyncContextManager[list[str]]:
        """Their block devices, in that order, which stay for the block, and for as long as they are mounted.

        Raises NotFound, PlatformError.
        """
        ...

    async def uses(self) -> dict[str, DiskUse]:
        """Of the host's disk, of those that can grow now."""
        ...

    async def allow(self, volume_id: str, more: int | None) -> None:
        """Lets it take that many more bytes of the host's disk, or (None) what its size allows."""
        ...

    async def dial(self, volume_id: str) -> socket.socket:
        """A connection to what serves its contents. Raises NotFound, PlatformError."""
        ...

    async def aclose(self) -> None:
        """Ends what serves contents. What is mounted stays. Idempotent."""
        ...


class NoVolumes:
    """A machine without."""

    def open(self) -> None:
        """See NodeVolumes."""

    def ids(self) -> list[str]:
        """See NodeVolumes."""
        return []

    async def create(self, volume_id: str, size_mib: int, token_digest: str) -> None:
        """See NodeVolumes."""
        raise NotOffered("this machine cannot have volumes")

    async def remove(self, volume_id: str) -> None:
        """See NodeVolumes."""

    @asynccontextmanager
    async def attached(self, volume_ids: Sequence[str]) -> AsyncIterator[list[str]]:
        """See NodeVolumes."""
        if volume_ids:
            raise NotFound(f"volume {volume_ids[0]!r} not found")
        yield []

    async def uses(self) -> dict[str, DiskUse]:
        """See NodeVolumes."""
        return {}

    async def allow(self, volume_id: str, more: int | None) -> None:
        """See NodeVolumes."""

    async def dial(self, volume_id: str) -> socket.socket:
        """See NodeVolumes."""
        raise NotFound(f"volume {volume_id!r} not found")

    async def aclose(self) -> None:
        """See NodeVolumes."""
