"""The host's end of a guest's Unix socket, for every tier: paths of any length, the preamble, a full backlog."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

from atoll.isolation.base import CONTROL_PORT, PREAMBLE
from atoll.model.sandbox import ENVD_PORT, INTERPRETER_PORT

GUEST_PORTS = frozenset({CONTROL_PORT, ENVD_PORT, INTERPRETER_PORT})
"""What the guest answers itself."""
_CONNECT_WITHIN_S = 10.0
_PATH_LIMIT = 100
_RETRY_S = 0.005


class ShortAddress:
    """A Unix address for a path of any length: the kernel allows 108 bytes, a descriptor of the directory needs few."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = -1
        self.text = str(path)

    def __enter__(self) -> ShortAddress:
        if len(os.fsencode(self._path)) > _PATH_LIMIT:
            self._directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.text = f"/proc/self/fd/{self._directory}/{self._path.name}"
        return self

    def __exit__(self, *_: object) -> None:
        if self._directory >= 0:
            os.close(self._directory)


async def connect(path: Path, first_bytes: bytes) -> socket.socket:
    """A non-blocking connection with its first bytes sent. Raises OSError; a full backlog is waited for, bounded."""
    deadline = asyncio.get_running_loop().time() + _CONNECT_WITHIN_S
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        while True:
            try:
                with ShortAddress(path) as address:
                    connection.connect(address.text)
                break
            except BlockingIOError:  # unlike TCP: the backlog is full and nothing is under way
                if asyncio.get_running_loop().time() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "the guest does not accept connections") from None
                await asyncio.sleep(_RETRY_S)
        if first_bytes:
            connection.send(first_bytes)
    except BaseException:
        connection.close()
        raise
    return connection


async def connect_guest(path: Path, port: int) -> socket.socket:
    """A connection to the guest with the preamble sent. Raises OSError."""
    return await connect(path, PREAMBLE.format(port=port).encode())


async def is_relayed(connection: socket.socket) -> bool:
    """Whether the guest has connected it to a port inside, after the preamble; else it is closed. Raises OSError."""
    try:
        answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 1), _CONNECT_WITHIN_S)
    except BaseException:
        connection.close()
        raise
    if answer != b"\0":
        connection.close()
        return False
    return True
