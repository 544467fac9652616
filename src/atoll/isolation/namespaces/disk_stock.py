"""Makes the disks that the zygote asks for, in threads of the server: mounting takes 3 to 20 ms, mkfs up to seconds.

    make(size) ──thread──► empty file system of that size (mkfs, once) ──thread──► image + mount ──line──► the zygote

A size that is new waits for its mkfs (`linux.disk.formats`): disks of known sizes are made by this thread meanwhile.
One thread: more would only make the host's disk seek.
"""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atoll.isolation.linux.disk.formats import Formats
from atoll.isolation.linux.disk.image import Disk, make_disk
from atoll.isolation.namespaces.zygote_client import ZygoteClient
from atoll.model.tasks import OwnedTasks


class DiskStock:
    """The maker of disks of one server. Images that an earlier server left unused are removed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._formats = Formats()
        self._mounting = ThreadPoolExecutor(1, "atoll-disks")
        self._tasks = OwnedTasks()
        self.remove_unused()

    def make(self, size_mib: int, zygote: ZygoteClient) -> None:
        """Makes one in the background and gives it to the zygote, or reports why not."""
        self._tasks.start(self._make_one(size_mib, zygote))

    async def _make_one(self, size_mib: int, zygote: ZygoteClient) -> None:
        image = self._directory / f"{zygote.name}-{secrets.token_hex(6)}.img"
        try:
            pieces = await self._formats.pieces(size_mib)
            making = asyncio.get_running_loop().run_in_executor(self._mounting, make_disk, image, size_mib, pieces)
            try:
                disk = await asyncio.shield(making)
            except asyncio.CancelledError:
                making.add_done_callback(_discard)
                raise
        except (OSError, ValueError) as error:
            zygote.refuse_disk(size_mib, f"a disk of {size_mib} MiB cannot be made: {error}")
            return
        zygote.stock(disk)

    def remove_unused(self, zygote_name: str = "") -> None:
        """The images that a zygote had when it was lost; by default those of every earlier one. Blocks briefly."""
        for left in self._directory.glob(f"{zygote_name}*.img"):
            left.unlink(missing_ok=True)

    async def aclose(self) -> None:
        """No more disks. Idempotent."""
        await self._tasks.aclose()
        await asyncio.to_thread(self._mounting.shutdown, wait=True)
        await self._formats.aclose()


def _discard(made: asyncio.Future[Disk]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().discard()
