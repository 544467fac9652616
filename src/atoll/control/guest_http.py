"""HTTP to a sandbox's guest, as the control plane's own client of it: connections by its route, Connect's envelopes.

What is sent over it is the caller's: `templates.guest` (builds), `atoll.console.guest` (the web console).
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import struct
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any

import httpcore

from atoll.model.errors import PortClosed
from atoll.model.sandbox import ENVD_PORT
from atoll.model.seams import Route, Spend

MAX_MESSAGE = 8 << 20
"""Bytes. The guest sends pieces of 64 KiB; anything near this is not the guest."""
ENVELOPE = struct.Struct(">BI")
"""Flags, length of the message that follows."""
LAST = 0x02
"""Flag of the envelope that ends a stream."""
_READ = 65536

NO_TIMEOUT: dict[str, Any] = {"timeout": {}}
"""httpcore's extension of a request. Others give seconds for `connect`, `read`, `write`: each step, not the whole."""


def guest_pool(route: Route, spend: Spend | None = None) -> httpcore.AsyncConnectionPool:
    """Connections to one sandbox's guest, which are read as `spend` allows. The caller closes it."""
    return httpcore.AsyncConnectionPool(network_backend=_Dialled(route, spend), retries=0)


def guest_url(target: str, port: int = ENVD_PORT) -> httpcore.URL:
    """`target`: path and query."""
    return httpcore.URL(scheme=b"http", host=b"guest", port=port, target=target.encode())


def guest_headers(route: Route, user: str, kind: str) -> list[tuple[str, str]]:
    """For a request with a body of the media type `kind`, made as `user`; "" is the template's default user."""
    found = [("Host", "guest"), ("Content-Type", kind)]
    if user:
        found.append(("Authorization", f"Basic {base64.b64encode(f'{user}:'.encode()).decode()}"))
    if kind.startswith("application/connect"):
        found.append(("Connect-Protocol-Version", "1"))
    if route.envd_access_token is not None:
        found.append(("X-Access-Token", route.envd_access_token))
    return found


async def messages(stream: AsyncIterable[bytes], largest: int = MAX_MESSAGE) -> AsyncIterator[tuple[int, bytes]]:
    """Connect's envelopes: flags (1 byte), length (4, big-endian), message. Raises ValueError: over `largest` bytes."""
    waiting = bytearray()
    async for piece in stream:
        waiting += piece
        while len(waiting) >= ENVELOPE.size:
            flags, length = ENVELOPE.unpack_from(waiting)
            if length > largest:
                raise ValueError(f"a message of {length} bytes")
            if len(waiting) < ENVELOPE.size + length:
                break
            yield flags, bytes(waiting[ENVELOPE.size : ENVELOPE.size + length])
            del waiting[: ENVELOPE.size + length]


class _Dialled(httpcore.AsyncNetworkBackend):
    """Connections to the guest, whatever address is asked for."""

    def __init__(self, route: Route, spend: Spend | None) -> None:
        self._route = route
        self._spend = spend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                sock = await self._route.dial(port)
        except PortClosed as error:
            raise httpcore.ConnectError(str(error)) from error
        except TimeoutError as error:
            raise httpcore.ConnectError(_late(error, timeout)) from error
        spend = partial(self._spend, self._route.sandbox_id) if self._spend is not None else None
        return _Stream(*await asyncio.open_connection(sock=sock), spend)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, spend: Callable[[int], float] | None
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._spend = spend

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                data = await self._reader.read(max_bytes or _READ)
        except TimeoutError as error:
            raise httpcore.ReadError(_late(error, timeout)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error
        if self._spend is not None and (wait := self._spend(len(data))) > 0:
            await asyncio.sleep(wait)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteError(_late(error, timeout)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        # Not `close`: that keeps the socket until a guest that reads nothing has taken what waits to be written.
        self._writer.transport.abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise NotImplementedError("the guest speaks no TLS")

    def get_extra_info(self, info: str) -> Any:
        return self._writer.get_extra_info(info)


def _late(error: TimeoutError, timeout: float | None) -> str:
    """The system's own words have an errno; ours is over."""
    return str(error) or f"it stands still for {timeout} s"
