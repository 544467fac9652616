"""Takes what a guest logs to the host, over its control port: as it comes, and once more before the sandbox is ended.

One connection per sandbox, opened a moment after its start so that no create waits for it. What comes out of a sandbox
is not trusted: lines and their number are bounded, what cannot be read is dropped, nothing here can fail the sandbox.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import structlog

from atoll.isolation.base import CONTROL_PORT, SandboxHandle
from atoll.model.errors import AtollError
from atoll.model.logs import LogEntry, LogLevel

FIRST_LOOK_S = 1.0
RETRY_S = 5.0
DRAIN_S = 0.25
"""How long the end of a sandbox may wait for the end of its log."""

_LINE_LIMIT = 256 * 1024
_READ_SIZE = 64 * 1024
_TEXT_MAX = 8192
_FIELDS_MAX = 16

_log = structlog.get_logger("atoll.node")

Sink = Callable[[str, Sequence[LogEntry]], Awaitable[None]]


class LogTail:
    """One sandbox's. `run` is its task; `drain` may be called beside it."""

    def __init__(self, handle: SandboxHandle, sink: Sink, base: int = 0) -> None:
        """`base` is added to the numbers of entries."""
        self._handle = handle
        self._sink = sink
        self._base = base
        self._number = 0
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Until it is cancelled or the sandbox has ended."""
        await asyncio.sleep(FIRST_LOOK_S)
        while True:
            try:
                await self._read("&follow=1")
            except AtollError:
                return
            except Exception as error:
                _log.debug("logs.interrupted", sandbox_id=self._handle.sandbox_id, error=str(error)[:200])
            await asyncio.sleep(RETRY_S)

    async def drain(self) -> None:
        """What is there now and was not taken yet. Bounded by DRAIN_S; never raises."""
        with suppress(Exception):
            async with asyncio.timeout(DRAIN_S):
                await self._read("")

    async def _read(self, follow: str) -> None:
        """Raises SandboxGone, PortClosed, OSError, ValueError (a line that is too long), EOFError."""
        loop = asyncio.get_running_loop()
        with await self._handle.dial(CONTROL_PORT) as sock:
            # HTTP/1.0: the answer ends with the connection and is not cut into chunks.
            request = f"GET /logs?after={self._number}{follow} HTTP/1.0\r\nhost: guest\r\n\r\n"
            await loop.sock_sendall(sock, request.encode())
            partial, has_head = b"", False
            while piece := await loop.sock_recv(sock, _READ_SIZE):
                partial += piece
                if not has_head:
                    _, end, rest = partial.partition(b"\r\n\r\n")
                    has_head, partial = bool(end), rest if end else partial
                if has_head:
                    *whole, partial = partial.split(b"\n")
                    await self._deliver(whole)
                if len(partial) > _LINE_LIMIT:
                    raise ValueError("a line of the guest's log has no end")

    async def _deliver(self, lines: Sequence[bytes]) -> None:
        async with self._turn:
            entries = [entry for line in lines if (entry := parse(line)) is not None and entry.number > self._number]
            if entries:
                self._number = entries[-1].number
                renumbered = [replace(entry, number=entry.number + self._base) for entry in entries]
                await self._sink(self._handle.sandbox_id, renumbered if self._base else entries)


def parse(line: bytes) -> LogEntry | None:
    """An entry from its line of JSON (see `guest/log.py`). None: it is not one."""
    try:
        given = json.loads(line)
        number, at, level, message = given["n"], given["t"], LogLevel(given["l"]), given["m"]
        if type(number) is not int or type(at) is not int or not isinstance(message, str) or number <= 0:
            return None
        moment = datetime.fromtimestamp(at / 1000, UTC)
        fields = _fields(given.get("f"))
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return None
    return LogEntry(number, moment, level, message[:_TEXT_MAX], fields)


def _fields(given: Any) -> dict[str, str]:
    if not isinstance(given, dict):
        return {}
    pairs = list(given.items())[:_FIELDS_MAX]
    return {key[:64]: value[:_TEXT_MAX] for key, value in pairs if isinstance(value, str)}
