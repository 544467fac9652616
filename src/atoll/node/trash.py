"""Deletes directories of dead sandboxes in the background. A sandbox chose what is in them: names, depth and number.

`put` is one rename, however much is inside. The removal itself is coreutils' `rm` in a child of low priority: it goes
down any depth without recursion, follows no link, holds no lock of this process, and `--one-file-system` keeps it out
of a mount that should not be there. What a stopped server did not finish, the next one does.
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import structlog

_log = structlog.get_logger("atoll.node")

_BATCH = 64
_LINGER_S = 0.5
"""One `rm` for all that ends within this; and it does not start between a kill and its answer."""


class Trash:
    """One directory, on the same file system as what is put into it. `run` is its only worker."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._filled = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self._serial = 0

    def open(self) -> int:
        """Makes the directory; returns how many things an earlier server left in it, which `run` will remove."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        left = len(self._entries())
        if left:
            self._wake()
        return left

    def put(self, path: Path) -> None:
        """Takes `path` away at once. A path that is not there is no error."""
        self._serial += 1
        try:
            os.rename(path, self._directory / f"{path.name}.{os.getpid()}.{self._serial}")
        except FileNotFoundError:
            return
        except OSError as error:
            _log.error("trash.rename_failed", path=str(path), error=str(error))
            return
        self._wake()

    async def run(self) -> None:
        """Removes until cancelled. Cancelling ends a removal under way; what is left stays for the next server."""
        while True:
            await self._filled.wait()
            await self._linger()
            self._filled.clear()
            while entries := self._entries()[:_BATCH]:
                if not await _remove(entries):
                    break
                if len(entries) < _BATCH:  # what came meanwhile waits for its own batch: under a steady stream too
                    await self._linger()
            if not self._filled.is_set():
                self._idle.set()

    async def settled(self) -> None:
        """Returns once everything that was put has been tried, and from now on nothing lingers."""
        self._hurry.set()
        await self._idle.wait()

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(_LINGER_S):
                await self._hurry.wait()
        except TimeoutError:
            return

    def _wake(self) -> None:
        self._idle.clear()
        self._filled.set()

    def _entries(self) -> list[Path]:
        return [Path(entry.path) for entry in os.scandir(self._directory)]


async def _remove(paths: Iterable[Path]) -> bool:
    """True if all are gone. Failures are logged and not tried again before the next `put` or start."""
    with tempfile.TemporaryFile() as complaints:
        child = _start(paths, complaints.fileno())
        try:
            await _ended(child.pid)
        except asyncio.CancelledError:
            child.kill()
            raise
        finally:
            status = child.wait()
        if status != 0:
            complaints.seek(0)
            _log.error("trash.remove_failed", error=complaints.read(500).decode("utf-8", "replace"))
    return status == 0


def _start(paths: Iterable[Path], complaints: int) -> subprocess.Popen[bytes]:
    """Not asyncio's subprocess: that forks the whole server inside the event loop, 15 ms in which nobody is served."""
    command = [*_as_owner(), "nice", "-n", "19", "rm", "-rf", "--one-file-system", "--", *map(str, paths)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=complaints)


@functools.cache
def _as_owner() -> tuple[str, ...]:
    """What an ordinary user's sandboxes leave (closed directories, subordinate ids) root of a namespace may remove."""
    if os.geteuid() == 0:
        return ()
    for more in (("--map-auto",), ()):
        prefix = ("unshare", "--user", "--map-root-user", *more, "--")
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return prefix
    return ()


async def _ended(pid: int) -> None:
    """Returns once the process has ended; it is not waited for yet."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
