"""ZMTP 3.0, client side: how the guest speaks to Jupyter kernels without a library and without a process in between.

Owns: the greeting, the READY command, subscription, frames ⇄ messages with a size limit. Does not own: what a message
says. Format: https://rfc.zeromq.org/spec/23/ (NULL mechanism). Kernels bind ROUTER and PUB, we connect DEALER and SUB.

    signature(10) version(2) mechanism(20) as-server(1) filler(31)      both sides, at once
    04 <len> 05 READY <properties>                                       both sides
    00|01|02|03 <len:1|8> <bytes>                                        frames; bit 0: more follow, 1: long length
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from enum import Enum

from atoll.guest.errors import GuestError

MAX_MESSAGE = 64 * 1024 * 1024
"""Bytes of one message that are kept; the frames beyond are read and thrown away and reported as None."""

MAX_FRAMES = 4096
"""Frames of one message; a peer that sends more is cut off."""

_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_GREETING_SIZE = 64
_MORE, _LONG, _COMMAND = 1, 2, 4
_READ_SIZE = 256 * 1024

_SUBSCRIBE_TO_ALL = b"\x01"
"""To a 3.0 peer a subscription is an ordinary message."""

Message = list[bytes | None]
"""The frames of one message; None stands for a frame that was thrown away because the message was too large."""


class SocketType(Enum):
    """What we are to the peer."""

    DEALER = b"DEALER"
    SUB = b"SUB"


class ZmtpError(GuestError):
    """The peer does not speak ZMTP 3 with the NULL mechanism, or broke its framing."""


def handshake(kind: SocketType, identity: bytes = b"") -> bytes:
    """What we say first. Messages have to wait until the peer is ready: libzmq drops a connection whose first bytes
    hold more than the handshake.
    """
    body = b"\x05READY" + _property(b"Socket-Type", kind.value)
    if identity:
        body += _property(b"Identity", identity)
    return _GREETING + _frame(_COMMAND, body)


def encode(frames: Sequence[bytes]) -> bytes:
    """One message."""
    last = len(frames) - 1
    return b"".join(_frame(_MORE if index < last else 0, frame) for index, frame in enumerate(frames))


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def _frame(flags: int, body: bytes) -> bytes:
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return struct.pack(">BQ", flags | _LONG, len(body)) + body


class Decoder:
    """Bytes of a peer → messages. Pure; commands are skipped, so is what goes beyond MAX_MESSAGE."""

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self.ready = False
        """The peer has sent READY."""
        self._max_message = max_message
        self._buffer = bytearray()
        self._greeted = False
        self._frames: Message = []
        self._size = 0
        self._to_skip = 0
        self._skipped_flags: int | None = None

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises ZmtpError; the decoder is of no use afterwards."""
        self._buffer += data
        messages: list[Message] = []
        if not self._greeted and not self._greet():
            return messages
        offset = 0
        while True:
            if self._skipped_flags is not None:
                step = min(self._to_skip, len(self._buffer) - offset)
                offset += step
                self._to_skip -= step
                if self._to_skip:
                    break
                self._add(self._skipped_flags, None, messages)
                self._skipped_flags = None
                continue
            head = self._head(offset)
            if head is None:
                break
            flags, start, length = head
            if length + self._size > self._max_message:
                self._skipped_flags, self._to_skip = flags, length
                offset = start
                continue
            if len(self._buffer) - start < length:
                break
            offset = start + length
            self._add(flags, bytes(self._buffer[start:offset]), messages)
        del self._buffer[:offset]
        return messages

    def _greet(self) -> bool:
        if len(self._buffer) < _GREETING_SIZE:
            return False
        greeting = bytes(self._buffer[:_GREETING_SIZE])
        if greeting[0] != 0xFF or greeting[9] != 0x7F or greeting[10] < 3 or greeting[12:32].rstrip(b"\0") != b"NULL":
            raise ZmtpError("the peer does not speak ZMTP 3 without encryption")
        del self._buffer[:_GREETING_SIZE]
        self._greeted = True
        return True

    def _head(self, offset: int) -> tuple[int, int, int] | None:
        available = len(self._buffer) - offset
        if available < 2:
            return None
        flags = self._buffer[offset]
        if flags & ~(_MORE | _LONG | _COMMAND):
            raise ZmtpError(f"reserved bits are set in a frame: {flags:#04x}")
        if not flags & _LONG:
            return flags, offset + 2, self._buffer[offset + 1]
        if available < 9:
            return None
        return flags, offset + 9, int(struct.unpack_from(">Q", self._buffer, offset + 1)[0])

    def _add(self, flags: int, frame: bytes | None, messages: list[Message]) -> None:
        if flags & _COMMAND:
            self.ready = self.ready or (frame or b"").startswith(b"\x05READY")
            return
        if len(self._frames) >= MAX_FRAMES:
            raise ZmtpError(f"a message of more than {MAX_FRAMES} frames")
        self._frames.append(frame)
        self._size += len(frame) if frame is not None else 0
        if not flags & _MORE:
            messages.append(self._frames)
            self._frames = []
            self._size = 0


class ZmtpConnection(asyncio.BufferedProtocol):
    """One connection to a kernel's socket. `received` is called per message, `lost` once when the connection ends.

    A BufferedProtocol with one read buffer for all connections: kernels send many small messages, and the guest's
    memory is paid per sandbox.
    """

    _buffer = bytearray(_READ_SIZE)
    """Holds bytes from a read to the call that follows it at once."""

    def __init__(
        self, kind: SocketType, received: Callable[[Message], None], lost: Callable[[], None], identity: bytes = b""
    ) -> None:
        self.is_lost = False
        self._hello = handshake(kind, identity)
        self._received = received
        self._lost = lost
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] | None = [encode([_SUBSCRIBE_TO_ALL])] if kind is SocketType.SUB else []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._hello)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        try:
            messages = self._decoder.feed(bytes(memoryview(self._buffer)[:nbytes]))
        except ZmtpError:
            self.close()
            return
        if self._waiting is not None and self._decoder.ready and self._transport is not None:
            self._transport.write(b"".join(self._waiting))
            self._waiting = None
        for message in messages:
            self._received(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._lost()

    def send(self, frames: Sequence[bytes]) -> None:
        """Queues one message; silently nothing once the connection is gone (`lost` has been set)."""
        if self._waiting is not None:
            self._waiting.append(encode(frames))
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(frames))

    @property
    def is_paused(self) -> bool:
        return self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading()

    def pause(self) -> None:
        """Reads no more until `resume`."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self.is_paused:
            self._transport.resume_reading()

    def close(self) -> None:
        """Idempotent; `lost` follows."""
        if self._transport is not None:
            self._transport.abort()
