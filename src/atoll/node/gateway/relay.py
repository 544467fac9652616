"""Two TCP transports joined, with back-pressure, half-close and byte counts. Knows nothing of policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pipe(asyncio.Protocol):
    """One end of a joined pair. Bytes that arrive before the other end is there are held, and reading is paused."""

    def __init__(self, on_closed: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.received = 0
        self._peer: Pipe | None = None
        self._early: list[bytes] = []
        self._eof = False
        self._on_closed = on_closed
        self._closed = False
        self._inspect: Callable[[bytes], bool] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self._closed:
            transport.abort()

    def inspect(self, check: Callable[[bytes], bool]) -> None:
        """Every later chunk is shown to `check` before it is passed on; False cuts the connection."""
        self._inspect = check

    def join(self, peer: Pipe, head: bytes = b"") -> None:
        """Passes `head`, then everything, on to `peer` from now on."""
        self._peer = peer
        for chunk in ([head] if head else []) + self._early:
            self._pass(chunk)
        self._early.clear()
        if self._eof:
            self.eof_received()
        if self.transport and not self.transport.is_closing() and not self._eof:
            self.transport.resume_reading()

    def _pass(self, data: bytes) -> None:
        if self._inspect and not self._inspect(data):
            self.abort()
            return
        if self._peer and self._peer.transport and not self._peer.transport.is_closing():
            self._peer.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self._peer is None:
            self._early.append(data)
            if self.transport:
                self.transport.pause_reading()
            return
        self._pass(data)

    def eof_received(self) -> bool:
        self._eof = True
        other = self._peer and self._peer.transport
        if other and not other.is_closing() and other.can_write_eof():
            other.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._peer and self._peer.transport and not self._peer.transport.is_closing():
            self._peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._peer and self._peer.transport and not self._peer.transport.is_closing():
            self._peer.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()
        if self._peer and self._peer.transport and not self._peer.transport.is_closing():
            if exc is None:
                self._peer.transport.close()
            else:
                self._peer.transport.abort()

    def abort(self) -> None:
        """Cuts both ends at once."""
        for end in (self, self._peer):
            if end and end.transport and not end.transport.is_closing():
                end.transport.abort()
        self._finish()

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            self._on_closed()
