"""Messages between two processes: whole JSON objects, in order, over a Unix socket (with descriptors) or a stream.

    PacketChannel   one packet is one message; a large one travels in a memory file. May carry descriptors
    StreamChannel   four bytes of length, then the message. TLS, other machines

Both refuse messages over MAX_MESSAGE. Neither knows what messages mean.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

MAX_MESSAGE = 16 << 20
"""Bytes. The largest are pages of logs and records of connections."""

_INLINE = 60_000
_MAX_DESCRIPTORS = 4
_SIZE = array.array("i").itemsize
_LENGTH = struct.Struct("!I")
_IN_MEMORY_FILE, _IN_PACKET = b"m", b"i"


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

    async def send(self, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """See Channel."""
        payload = _encoded(body)
        if len(payload) <= _INLINE:
            await self._packet(_IN_PACKET + payload, list(descriptors))
            return
        spill = os.memfd_create("message", os.MFD_CLOEXEC)
        try:
            os.write(spill, payload)  # to memory: never short
            await self._packet(_IN_MEMORY_FILE, [*descriptors, spill])
        finally:
            os.close(spill)

    async def _packet(self, packet: bytes, descriptors: list[int]) -> None:
        if self._closed:
            raise ChannelClosed("the channel is closed")
        if not self._waiting and self._try(packet, descriptors):
            return
        sent: asyncio.Future[None] = self._loop.create_future()
        self._waiting.append((packet, descriptors, sent))
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sock.fileno(), self._write_waiting)
        await asyncio.shield(sent)  # the descriptors must stay open until they are passed

    def _try(self, packet: bytes, descriptors: list[int]) -> bool:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self._sock.sendmsg([packet], ancillary, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self.close()
            raise ChannelClosed(str(error)) from error
        return True

    def _write_waiting(self) -> None:
        while self._waiting:
            packet, descriptors, sent = self._waiting[0]
            try:
                if not self._try(packet, descriptors):
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
        packet, ancillary, flags, _ = self._sock.recvmsg(
            _INLINE + 1, socket.CMSG_SPACE(_MAX_DESCRIPTORS * _SIZE), socket.MSG_CMSG_CLOEXEC
        )
        passed = _descriptors(ancillary)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("a packet too large for the channel")
            if not packet:
                raise ChannelClosed("the other side is gone")
            if packet[:1] == _IN_MEMORY_FILE:
                packet = _IN_PACKET + _take_spilled(passed)
            body = _decoded(packet[1:])
        except BaseException:
            for descriptor in passed:
                os.close(descriptor)
            raise
        return Message(body, passed)

    async def _until_readable(self) -> None:
        self._readable = self._loop.create_future()
        self._loop.add_reader(self._sock.fileno(), self._on_readable)
        try:
            await self._readable
        finally:
            if not self._closed:
                self._loop.remove_reader(self._sock.fileno())
            self._readable = None

    def _on_readable(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    def close(self) -> None:
        """See Channel."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._on_readable()
        while self._waiting:
            _, _, sent = self._waiting.popleft()
            if not sent.done():
                sent.set_exception(ChannelClosed("the channel is closed"))
                sent.exception()  # whoever sent it may have been cancelled
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
        payload = _encoded(body)
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
                raise ValueError(f"a message of {length} bytes, more than {MAX_MESSAGE}")
            return Message(_decoded(await self._reader.readexactly(length)))
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise ChannelClosed(str(error)) from error

    def close(self) -> None:
        """See Channel."""
        self._writer.close()


def _encoded(body: dict[str, Any]) -> bytes:
    payload = json.dumps(body, separators=(",", ":")).encode()
    if len(payload) > MAX_MESSAGE:
        raise ValueError(f"a message of {len(payload)} bytes, more than {MAX_MESSAGE}")
    return payload


def _decoded(payload: bytes) -> dict[str, Any]:
    body = json.loads(payload)
    if not isinstance(body, dict):
        raise ValueError("a message is a JSON object")
    return body


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _SIZE])
    return list(found)


def _take_spilled(passed: list[int]) -> bytes:
    if not passed:
        raise ValueError("a large message without its memory file")
    spill = passed.pop()
    try:
        if os.fstat(spill).st_size > MAX_MESSAGE:
            raise ValueError(f"a message of more than {MAX_MESSAGE} bytes")
        return os.pread(spill, MAX_MESSAGE, 0)
    finally:
        os.close(spill)
