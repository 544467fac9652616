"""Disks made ahead of need in a thread of the server, and handed to the zygote: mounting takes 3 to 20 ms.

    fill(size, n) ──thread──► image + mount ──line──► the zygote's stock ──► a sandbox's root

One thread: more would only make the host's disk seek. What a size is used for once is made again for that size.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from atoll.isolation.linux.disk.image import Disk, Templates, make_disk
from atoll.isolation.namespaces.zygote_client import ZygoteClient

_AFTER_S = 0.03
"""A mount right behind a create would compete with the newborn guest for the processor."""
_MOST_WAITING = 32


class DiskStock:
    """The maker of disks of one server. Images that an earlier server left unused are removed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._templates = Templates()
        self._pool = ThreadPoolExecutor(1, "atoll-disks")
        self._tasks: set[asyncio.Task[None]] = set()
        for left in directory.glob("s*.img"):
            left.unlink(missing_ok=True)

    def fill(self, size_mib: int, count: int, zygote: ZygoteClient) -> None:
        """Makes `count` more of that size in the background."""
        for _ in range(count):
            if len(self._tasks) >= _MOST_WAITING:
                return
            task = asyncio.get_running_loop().create_task(self._make_one(size_mib, zygote))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _make_one(self, size_mib: int, zygote: ZygoteClient) -> None:
        await asyncio.sleep(_AFTER_S)
        image = self._directory / f"s{secrets.token_hex(6)}.img"
        making = asyncio.get_running_loop().run_in_executor(self._pool, make_disk, image, size_mib, self._templates)
        try:
            disk = await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(_discard)
            raise
        except OSError:
            return  # the zygote makes its own then, and whoever asked is told why it cannot
        zygote.stock(disk)

    async def aclose(self) -> None:
        """No more disks. Idempotent."""
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._pool.shutdown, wait=True)


def _discard(made: asyncio.Future[Disk]) -> None:
    if not made.cancelled() and made.exception() is None:
        made.result().discard()
