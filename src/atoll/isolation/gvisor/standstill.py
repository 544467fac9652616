"""One sandbox brought to a stand, by orders to its guest and to runsc, and let go on again.

    shut ─► stop ─► (its memory written, its disk copied) ─► go_on          the mark lies in its directory all the while
      └───────┴──────── undo: whatever of it was done ────────┘

A server that ends meanwhile leaves the mark, and the next one undoes what the first has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from atoll.isolation.base import GUEST_SOCKET
from atoll.isolation.gvisor import launch, start
from atoll.isolation.gvisor.container import Container, Refused
from atoll.isolation.linux.net import control, guest_socket
from atoll.isolation.linux.process_identity import has_ended

SHUT = "shut"
"""In launch.IO; as in the guest."""
_SHUT_WITHIN_S = 20.0
_POLL_S = 0.002


def was_left(place: Path) -> bool:
    """Whether a server has ended while the sandbox stood still for it."""
    return (place / launch.MARK).exists()


class Standstill:
    """`place`: its directory; `pidfd`: its kernel."""

    def __init__(self, container: Container, place: Path, pidfd: int) -> None:
        self._container = container
        self._place = place
        self._pidfd = pidfd

    async def flush(self, *, end: bool = False) -> None:
        """What its programs wrote is the host's; `end`: after which there are none. Raises OSError, TimeoutError."""
        body = {"end": end, "shut": False}
        await control.request(self._place / GUEST_SOCKET, "POST", "/checkpoint", body, within_s=_SHUT_WITHIN_S)

    async def shut(self) -> None:
        """Its guest holds no connection to the host. Raises OSError, TimeoutError; `undo` is due in any case."""
        (self._place / launch.MARK).touch()
        with contextlib.suppress(ConnectionError, ValueError):  # the answer may be cut off with everything else
            body = {"end": False, "shut": True}
            await control.request(self._place / GUEST_SOCKET, "POST", "/checkpoint", body, within_s=_SHUT_WITHIN_S)
        async with asyncio.timeout(_SHUT_WITHIN_S):
            while not self._is_shut():
                if has_ended(self._pidfd):
                    raise OSError("its kernel ended")
                await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """Nothing in it runs. Raises Refused; `undo` is due in any case."""
        (self._place / launch.MARK).touch()
        await self._container.stop()

    async def undo(self) -> None:
        """It runs and can be reached. Raises OSError, TimeoutError, Refused."""
        try:
            await self._container.go_on()
        except Refused:  # it was not stopped
            if has_ended(self._pidfd):
                raise
        await self._open()
        (self._place / launch.MARK).unlink(missing_ok=True)

    async def _open(self) -> None:
        """A guest that is shut, or about to be, is ordered to open again."""
        async with asyncio.timeout(_SHUT_WITHIN_S):
            while not self._is_shut():
                with contextlib.suppress(OSError):
                    (await guest_socket.connect(self._place / GUEST_SOCKET, b"")).close()
                    return
                await asyncio.sleep(_POLL_S)
        (self._place / launch.IO / SHUT).unlink()
        os.close(os.open(self._place / launch.IO / launch.GO, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        (await start.connect(self._place, self._pidfd)).close()

    def _is_shut(self) -> bool:
        return (self._place / launch.IO / SHUT).exists()
