"""The guest's part when its sandbox's memory is saved, and when it goes on from there: for tiers that can (gVisor).

    serving ── POST /checkpoint ──► shut: no listener, no connection; a file SHUT in the shared directory says so
    shut ── a file GO in that directory ──► the socket is bound anew ──► serving

A connection to the host cannot be saved, so all are cut before. GO is made by the host: at once where the sandbox goes
on beside its image, later in each that is restored from it. Programs inside notice nothing of either.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass

from atoll.guest.transport import Transport
from atoll.http1.server import Request, Response

ROUTE = ("POST", "/checkpoint")
GO = "go"
SHUT = "shut"
_POLL_S = 0.004
_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Shared:
    """The directory that the host sees too, covered since for everybody else inside."""

    directory: int
    socket: str
    listens: str
    """A file that says that the socket listens."""


_shared: list[Shared] = []


def adopt(directory: str, socket_name: str, listens: str) -> None:
    """From now on this guest can be saved. Before the directory is covered. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _shared.append(Shared(descriptor, socket_name, listens))


def is_held() -> bool:
    """Whether this guest can be saved."""
    return bool(_shared)


class Checkpoint:
    """The handler of ROUTE, and the way back."""

    def __init__(self) -> None:
        self._transport: Transport | None = None
        self._standstill: asyncio.Task[None] | None = None

    def serve(self, transport: Transport) -> None:
        """What is to be shut and opened again."""
        self._transport = transport

    async def handle(self, request: Request) -> Response:
        """202: about to be shut. This connection is cut too, so that the answer may be lost; SHUT counts."""
        if self._standstill is None or self._standstill.done():
            self._standstill = asyncio.get_running_loop().create_task(self._stand_still())
        return Response(202, (("connection", "close"),))

    async def _stand_still(self) -> None:
        assert self._transport is not None
        shared = _shared[0]
        await self._transport.shut()
        _make(shared, SHUT)
        while not _take(shared, GO):  # noqa: ASYNC110 - nobody inside can say so, and a watch would see no host
            await asyncio.sleep(_POLL_S)
        await self._transport.start(_bind(shared))
        _make(shared, shared.listens)


def _make(shared: Shared, name: str) -> None:
    flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=shared.directory))


def _take(shared: Shared, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=shared.directory)
    except FileNotFoundError:
        return False
    return True


def _bind(shared: Shared) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchdir(shared.directory)  # no path leads there
    try:
        listener.bind(shared.socket)
    finally:
        os.chdir("/")
    listener.listen(_BACKLOG)
    return listener
