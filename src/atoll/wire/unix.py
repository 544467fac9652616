"""Channels over Unix sockets of this machine: bound, accepted from processes of certain users, connected."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Set
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog

from atoll.model.tasks import OwnedTasks
from atoll.wire.channel import Channel, PacketChannel

_log = structlog.get_logger("atoll.serve")

_BACKLOG = 16
_PEER = struct.Struct("3i")


def bind(path: Path) -> socket.socket:
    """A listening, non-blocking socket at `path`, in place of one that was left there. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _reachable(path) as short:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(short)
            listener.bind(short)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def accepting(
    listener: socket.socket, serve: Callable[[Channel], Awaitable[None]], users: Set[int]
) -> AsyncIterator[None]:
    """Within the block each connection of a process of `users` (host user ids) is served by a task of its own."""
    loop = asyncio.get_running_loop()
    serving = OwnedTasks()

    async def one(connection: socket.socket) -> None:
        await serve(PacketChannel(connection))

    def accept() -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            if (peer := peer_user(connection)) not in users:
                _log.warning("wire.stranger_refused", user=peer)
                connection.close()
                return
            serving.start(one(connection))

    loop.add_reader(listener.fileno(), accept)
    try:
        yield
    finally:
        loop.remove_reader(listener.fileno())
        await serving.aclose()


async def connect(path: Path) -> Channel:
    """A channel to the listener at `path`: at once, also while it is being started again. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _reachable(path) as short:
            sock.connect(short)  # a Unix socket: at once, or refused
        sock.setblocking(False)
        return PacketChannel(sock)
    except BaseException:
        sock.close()
        raise


def peer_user(connection: socket.socket) -> int:
    """The user id of the process at the other end of a Unix socket."""
    _, user, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(user)


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Another path of the same file, short enough for a socket's address (108 bytes)."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
