"""The rest of a long body from one socket to another inside the kernel, without a copy in this process.

    source ──splice──► pipe ──splice──► sink

Works on copies of the descriptors, beside the transports that own the sockets: those must stand still meanwhile, the
source's not reading and the sink's with nothing left to write. Knows nothing of HTTP: it gets a number of bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable

AT_LEAST = 1024 * 1024
"""Bytes below which setting it up costs more than it saves."""
_PIPE = 256 * 1024
"""What a download whose client does not read holds at most, beside the sockets."""
_STEPS = 8
"""Moves between two turns of the event loop: one fast download must not keep all others waiting."""
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

Ended = Callable[[bool], None]
"""True: all bytes are in the sink. False: one of the sockets ended before that."""


class Splice:
    """Begins at once and calls `ended` once, from the loop, unless it is cancelled. Raises OSError when it cannot."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, source: socket.socket, sink: socket.socket, count: int, ended: Ended
    ) -> None:
        self._loop = loop
        self._ended = ended
        self._to_read = count
        self._in_pipe = 0
        self._watched = -1
        self._turn: asyncio.Handle | None = None
        self._descriptors = list(os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            self._descriptors += [os.dup(source.fileno()), os.dup(sink.fileno())]
        except OSError:
            self._close()
            raise
        self._out, self._in, self._source, self._sink = self._descriptors
        with contextlib.suppress(OSError):  # the system's limit for one user's pipes: it works with less
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, _PIPE)
        self._turn = loop.call_soon(self._move)

    def cancel(self) -> None:
        """Stops where it is. Idempotent; also after the end."""
        self._unwatch()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._close()

    def _close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = []

    def _move(self) -> None:
        self._turn = None
        self._unwatch()
        try:
            for _ in range(_STEPS):
                filled = self._fill()
                drained = self._drain()
                if self._to_read == 0 and self._in_pipe == 0:
                    self._end(True)
                    return
                if not filled and not drained:
                    self._wait()
                    return
        except OSError:  # either side is gone
            self._end(False)
            return
        self._turn = self._loop.call_soon(self._move)

    def _fill(self) -> bool:
        """Whether something came into the pipe. Raises OSError, ConnectionError at the source's end."""
        if self._to_read == 0 or self._in_pipe >= _PIPE:
            return False
        try:
            moved = os.splice(self._source, self._in, min(self._to_read, _PIPE), flags=_FLAGS)
        except (BlockingIOError, InterruptedError):
            return False  # nothing is there, or the pipe is full
        if moved == 0:
            raise ConnectionError("the source ended early")
        self._to_read -= moved
        self._in_pipe += moved
        return True

    def _drain(self) -> bool:
        if self._in_pipe == 0:
            return False
        try:
            moved = os.splice(self._out, self._sink, self._in_pipe, flags=_FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        self._in_pipe -= moved
        return moved > 0

    def _wait(self) -> None:
        """For the sink as long as the pipe holds something: a reader that is slow slows the source down."""
        if self._in_pipe:
            self._watched = self._sink
            self._loop.add_writer(self._sink, self._move)
        else:
            self._watched = self._source
            self._loop.add_reader(self._source, self._move)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            remove = self._loop.remove_writer if self._watched == self._sink else self._loop.remove_reader
            remove(self._watched)
            self._watched = -1

    def _end(self, whole: bool) -> None:
        self.cancel()
        self._ended(whole)
