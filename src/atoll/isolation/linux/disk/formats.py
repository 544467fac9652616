"""Empty file systems by size, for an event loop: mkfs runs in threads of its own, once per size that is asked for.

The time that it takes grows with the size, so what is larger than usual has a thread of its own, and keeps nobody
waiting for another size. More threads would only make the host's disk seek.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from atoll.isolation.linux.disk.image import Piece, Templates
from atoll.model.sandbox import Limits


class Formats:
    """`Templates`, made outside of the event loop and of the threads that others use."""

    def __init__(self) -> None:
        self._templates = Templates()
        self._usual = ThreadPoolExecutor(1, "atoll-mkfs")
        self._large = ThreadPoolExecutor(1, "atoll-mkfs-large")
        self._under_way: dict[int, asyncio.Future[Sequence[Piece]]] = {}

    async def pieces(self, size_mib: int) -> Sequence[Piece]:
        """What an empty file system of that size consists of. Raises OSError."""
        if (known := self._templates.known(size_mib)) is not None:
            return known
        return await asyncio.shield(self._under_way.get(size_mib) or self._make(size_mib))

    def _make(self, size_mib: int) -> asyncio.Future[Sequence[Piece]]:
        thread = self._usual if size_mib <= Limits().disk_mib else self._large
        made = asyncio.get_running_loop().run_in_executor(thread, self._templates.pieces, size_mib)
        self._under_way[size_mib] = made
        made.add_done_callback(lambda _: self._under_way.pop(size_mib))
        return made

    async def aclose(self) -> None:
        """Waits for what is under way. Idempotent."""
        for thread in (self._usual, self._large):
            await asyncio.to_thread(thread.shutdown, wait=True, cancel_futures=True)
