"""Two TCP transports joined, with back-pressure, half-close and byte counts. Knows nothing of policy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

Filter = Callable[[bytes], bytes | None]
"""A chunk → what is passed on instead of it; None cuts the connection."""


class Pipe(asyncio.Protocol):
    """One end of a joined pair. Bytes that arrive before the other end is there are held, and reading is paused.

    `on_closed` is called once, when this end is gone. `spend` gets the size of what has come, and returns for how many
    seconds nothing more is to be read.
    """

    def __init__(
        self,
        on_closed: Callable[[], None],
        change: Filter | None = None,
        spend: Callable[[int], float] | None = None,
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self.received = 0
        self._peer: Pipe | None = None
        self._early: list[bytes] = []
        self._ended = False
        self._on_closed = on_closed
        self.change = change
        """May be set anew at any time."""
        self._aborted = False
        self._lost = False
        self._spend = spend
        self._waits: asyncio.TimerHandle | None = None
        """Set while it is too fast."""
        self._peer_is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        if self._aborted:
            self.transport.abort()

    def join(self, peer: Pipe, head: bytes = b"") -> None:
        """Passes `head`, then everything, on to `peer` from now on. Both ends have their transports."""
        self._peer = peer
        self.received += len(head)
        for chunk in ([head] if head else []) + self._early:
            self._pass(chunk)
        self._early.clear()
        if self._lost or peer._lost:
            self.abort()
        elif self._ended:
            self._end()
        else:
            self._read_on()

    def _pass(self, data: bytes) -> None:
        peer = self._peer.transport if self._peer else None
        if peer is None or peer.is_closing():
            return
        if self.change is not None:
            changed = self.change(data)
            if changed is None:
                self.abort()
                return
            data = changed
        if data:
            peer.write(data)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self._peer is not None:
            self._hold_back(len(data))
            self._pass(data)
            return
        self._early.append(data)
        if self.transport:
            self.transport.pause_reading()

    def _hold_back(self, size: int) -> None:
        delay = self._spend(size) if self._spend is not None else 0.0
        if delay and self._waits is None and self.transport and not self.transport.is_closing():
            self.transport.pause_reading()
            self._waits = asyncio.get_running_loop().call_later(delay, self._waited)

    def _waited(self) -> None:
        self._waits = None
        self._read_on()

    def _read_on(self) -> None:
        """Unless there is still a reason not to."""
        held = self._waits is not None or self._peer_is_full or self._ended
        if not held and self.transport and not self.transport.is_closing():
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        self._ended = True
        secure = self.transport is not None and self.transport.get_extra_info("sslcontext") is not None
        return self._end() and not secure  # TLS closes whatever we say

    def _end(self) -> bool:
        """Passes the end on. When both sides have ended, both close once what they still hold is written."""
        if self._peer is None:
            return True
        other = self._peer.transport
        if self._peer._ended:
            if other and not other.is_closing():
                other.close()
            if self.transport and not self.transport.is_closing():
                self.transport.close()
            return False
        if other and not other.is_closing():
            if not other.can_write_eof():  # TLS knows no half-closed connections
                other.close()
                return False
            other.write_eof()
        return True

    def pause_writing(self) -> None:
        if self._peer:
            self._peer._peer_is_full = True
            if self._peer.transport and not self._peer.transport.is_closing():
                self._peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._peer:
            self._peer._peer_is_full = False
            self._peer._read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._waits is not None:
            self._waits.cancel()
        other = self._peer.transport if self._peer else None
        if other and not other.is_closing():
            if exc is None:
                other.close()
            else:
                other.abort()
        self._on_closed()

    def abort(self) -> None:
        """Cuts both ends at once."""
        for end in (self, self._peer):
            if end is None:
                continue
            end._aborted = True
            if end.transport and not end.transport.is_closing():
                end.transport.abort()
