"""Messages between two processes: whole JSON objects, in order, over a Unix socket (with descriptors) or a stream.

    PacketChannel   one packet is one message (`atoll.packets`). May carry descriptors
    StreamChannel   four bytes of length, then the message. TLS, other machines

Both refuse messages over MAX_MESSAGE. Neither knows what messages mean.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from atoll import packets
from atoll.packets import MAX_MESSAGE

_LENGTH = struct.Struct("!I")


class ChannelClosed(ConnectionError):
    """The other side is gone, or broke the rules of the channel."""


class Message(NamedTuple):
    """One message. Who takes it owns the descriptors."""

    body: dict[str, Any]
    descriptors: Sequence[int] = ()


class Channel(Protocol):
    """Both kinds. One task receives; any task of the same loop may send."""

    async def send(self, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Returns when it is handed to the kernel; the descriptors stay the caller's. Raises ChannelClosed."""
        ...

    async def receive(self) -> Message:
        """Raises ChannelClosed."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class PacketChannel:
    """Over a connected, non-blocking SOCK_SEQPACKET socket of the Unix family, which it takes over."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, list[int], asyncio.Future[None]]] = deque()
        self._writing = False
        self._closed = False
        self._readable: asyncio.Future[None] | None = None
        self._watched = False

    async def send(self, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """See Channel."""
        payload, held = packets.encode(body), list(descriptors)
        if self._closed:
            raise ChannelClosed("the channel is closed")
        if not self._waiting and self._try(payload, held):
            return
        sent: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((payload, held, sent))
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._write_waiting)
        await asyncio.shield(sent)  # the descriptors must stay open until they are passed

    def _try(self, payload: bytes, descriptors: Sequence[int]) -> bool:
        try:
            packets.send(self._sock, payload, descriptors)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.close()
            raise ChannelClosed(str(error)) from error
        return True

    def _write_waiting(self) -> None:
        while self._waiting:
            payload, descriptors, sent = self._waiting[0]
            try:
                if not self._try(payload, descriptors):
                    return
            except ChannelClosed:
                return  # `close` has failed all that waits
            self._waiting.popleft()
            if not sent.done():
                sent.set_result(None)
        self._writing = False
        self._loop.remove_writer(self._sock.fileno())

    async def receive(self) -> Message:
        """See Channel."""
        while True:
            if self._closed:
                raise ChannelClosed("the channel is closed")
            try:
                return self._receive_now()
            except (BlockingIOError, InterruptedError):
                await self._until_readable()
            except (OSError, ValueError) as error:
                self.close()
                raise ChannelClosed(str(error)) from error

    def _receive_now(self) -> Message:
        body, passed = packets.receive(self._sock)
        if body is None:
            raise ChannelClosed("the other side is gone")
        return Message(body, passed)

    async def _until_readable(self) -> None:
        self._readable = self._loop.create_future()
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._sock.fileno(), self._on_readable)
        try:
            await self._readable
        finally:
            self._readable = None

    def _on_readable(self) -> None:
        """The socket stays watched from one message to the next, which saves five system calls for each; only while
        nobody receives it is not, for it would be readable all the time."""
        if self._readable is None:
            self._watched = False
            self._loop.remove_reader(self._sock.fileno())
        elif not self._readable.done():
            self._readable.set_result(None)

    def close(self) -> None:
        """See Channel."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)
        while self._waiting:
            _, _, sent = self._waiting.popleft()
            if not sent.done():
                sent.set_exception(ChannelClosed("the channel is closed"))
                sent.exception()  # the sender may have been cancelled
        self._sock.close()


class StreamChannel:
    """Over a pair of asyncio streams. Carries no descriptors."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """See Channel."""
        if descriptors:
            raise ValueError("a stream carries no descriptors")
        payload = packets.encode(body)
        try:
            self._writer.write(_LENGTH.pack(len(payload)) + payload)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise ChannelClosed(str(error)) from error

    async def receive(self) -> Message:
        """See Channel."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_MESSAGE:
                raise ValueError(f"a message of {length} bytes is too large: at most {MAX_MESSAGE}")
            return Message(packets.decode(await self._reader.readexactly(length)))
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise ChannelClosed(str(error)) from error

    def close(self) -> None:
        """See Channel."""
        self._writer.close()
