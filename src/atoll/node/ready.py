"""Directories made ahead of need: the file system takes ten times as long to make a file as to rename it.

One thread; it starts a moment after a create, so as not to compete with the new guest for the processor. What an
earlier server left is removed: there is nothing in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import deque
from pathlib import Path

from atoll.isolation import directory

READY = 8
_AFTER_S = 0.2


class ReadyDirectories:
    """Lies on the same file system as where they go. `run` is its only maker."""

    def __init__(self, place: Path, count: int = READY) -> None:
        self._place = place
        self._count = count
        self._ready: deque[Path] = deque()
        self._serial = 0
        self._taken = asyncio.Event()

    def open(self) -> None:
        """Raises OSError."""
        shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(mode=0o700, parents=True)
        self._taken.set()

    def take(self, path: Path) -> None:
        """A sandbox's directory at `path`. Raises OSError (FileExistsError: there is one)."""
        if path.exists():
            raise FileExistsError(f"{path} exists")
        self._taken.set()
        if self._ready:
            with contextlib.suppress(FileNotFoundError):  # somebody else removed it
                self._ready.popleft().rename(path)
                return
        directory.prepare(path)

    async def run(self) -> None:
        """Keeps the stock full until cancelled. A full disk is reported to the next create."""
        while True:
            await self._taken.wait()
            await asyncio.sleep(_AFTER_S)
            self._taken.clear()
            with contextlib.suppress(OSError):
                while len(self._ready) < self._count:
                    self._serial += 1
                    path = self._place / str(self._serial)
                    await asyncio.to_thread(directory.prepare, path)
                    self._ready.append(path)

    def close(self) -> None:
        """Removes what is left. Idempotent."""
        self._ready.clear()
        shutil.rmtree(self._place, ignore_errors=True)
