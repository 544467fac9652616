"""The part of envd's protocol that a template build speaks to its own sandbox: run a command, store a file.

Over sockets that the sandbox's route makes; Connect with JSON, as in `wire.envd` (the guest's side of it).
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import struct
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpcore

from atoll.control.templates.steps import Command
from atoll.model.errors import PlatformError, PortClosed, SandboxGone
from atoll.model.sandbox import ENVD_PORT
from atoll.model.seams import Route

MAX_MESSAGE = 8 << 20
"""Bytes. The guest sends pieces of 64 KiB; anything near this is not the guest."""
_HEAD = struct.Struct(">BI")
_LAST = 0x02
_READ = 65536


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. `error`: why it could not be run, or what ended it, in the guest's words."""

    exit_code: int
    error: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether it ended by itself, with 0."""
        return self.exit_code == 0 and not self.error.startswith("signal")


class GuestClient:
    """One sandbox's envd. Every method raises SandboxGone, PlatformError (it does not answer as it should)."""

    def __init__(self, route: Route) -> None:
        self._route = route
        self._pool = httpcore.AsyncConnectionPool(network_backend=_Dialled(route), retries=0)

    async def aclose(self) -> None:
        """Ends its connections; a command that is followed is ended by the guest then."""
        await self._pool.aclose()

    async def run(
        self,
        command: Command,
        on_output: Callable[[bytes, bool], None] = lambda _data, _is_error: None,
    ) -> Outcome:
        """Runs a command to its end. `on_output` gets what it writes, in pieces, and whether to stderr."""
        program, *arguments = command.argv
        process: dict[str, Any] = {"cmd": program, "args": arguments, "envs": dict(command.env)}
        if command.cwd is not None:
            process["cwd"] = command.cwd
        message = json.dumps({"process": process, "stdin": False}).encode()
        headers = self._headers(command.user, "application/connect+json")
        content = _HEAD.pack(0, len(message)) + message
        outcome: Outcome | None = None
        try:
            async with self._pool.stream(
                "POST", _url("/process.Process/Start"), headers=headers, content=content, extensions=_NO_TIMEOUT
            ) as answer:
                if answer.status != 200:
                    raise PlatformError(f"the build's sandbox answered {answer.status} to a command")
                async for flags, body in _messages(answer.aiter_stream()):
                    found = _failed(body) if flags & _LAST else _take(body, on_output)
                    outcome = outcome if flags & _LAST and outcome else found or outcome
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
            raise PlatformError(f"the build's sandbox cannot be reached: {error or type(error).__name__}") from error
        if outcome is None:
            raise SandboxGone(self._route.sandbox_id, "its stream ended before the command did")
        return outcome

    async def store(self, path: str, pieces: AsyncIterator[bytes], size: int) -> None:
        """Writes a file as root, its parents made where they are missing."""
        headers = [*self._headers("root", "application/octet-stream"), ("Content-Length", str(size))]
        url = _url("/files?" + urlencode({"path": path, "username": "root"}))
        try:
            answer = await self._pool.request("POST", url, headers=headers, content=pieces, extensions=_NO_TIMEOUT)
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise PlatformError(f"the build's sandbox cannot be reached: {error or type(error).__name__}") from error
        if answer.status >= 300:
            reason = answer.content[:500].decode(errors="replace")
            raise PlatformError(f"the build's sandbox did not take {path}: {reason}")

    def _headers(self, user: str, kind: str) -> list[tuple[str, str]]:
        token = base64.b64encode(f"{user}:".encode()).decode()
        found = [("Host", "guest"), ("Content-Type", kind), ("Authorization", f"Basic {token}")]
        if kind.startswith("application/connect"):
            found.append(("Connect-Protocol-Version", "1"))
        if self._route.envd_access_token is not None:
            found.append(("X-Access-Token", self._route.envd_access_token))
        return found


_NO_TIMEOUT: dict[str, Any] = {"timeout": {}}


def _url(target: str) -> httpcore.URL:
    return httpcore.URL(scheme=b"http", host=b"guest", port=ENVD_PORT, target=target.encode())


async def _messages(stream: AsyncIterable[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    """Connect's envelopes: flags (1 byte), length (4, big-endian), message. Raises ValueError."""
    waiting = bytearray()
    async for piece in stream:
        waiting += piece
        while len(waiting) >= _HEAD.size:
            flags, length = _HEAD.unpack_from(waiting)
            if length > MAX_MESSAGE:
                raise ValueError(f"a message of {length} bytes")
            if len(waiting) < _HEAD.size + length:
                break
            yield flags, bytes(waiting[_HEAD.size : _HEAD.size + length])
            del waiting[: _HEAD.size + length]


def _take(body: bytes, on_output: Callable[[bytes, bool], None]) -> Outcome | None:
    event = json.loads(body).get("event", {})
    if "data" in event:
        for name, is_error in (("stdout", False), ("stderr", True)):
            if name in event["data"]:
                on_output(base64.b64decode(event["data"][name]), is_error)
    if "end" in event:
        end = event["end"]
        return Outcome(int(end.get("exitCode", 0)), str(end.get("error", "")))
    return None


def _failed(body: bytes) -> Outcome | None:
    error = json.loads(body or b"{}").get("error")
    return Outcome(-1, str(error.get("message", error.get("code", "failed")))) if error else None


class _Dialled(httpcore.AsyncNetworkBackend):
    """Connections to the guest, whatever address is asked for."""

    def __init__(self, route: Route) -> None:
        self._route = route

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            sock = await self._route.dial(port)
        except PortClosed as error:
            raise httpcore.ConnectError(str(error)) from error
        return _Stream(*await asyncio.open_connection(sock=sock))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            return await self._reader.read(max_bytes or _READ)
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            self._writer.write(buffer)
            await self._writer.drain()
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        self._writer.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise NotImplementedError("the guest speaks no TLS")

    def get_extra_info(self, info: str) -> Any:
        return self._writer.get_extra_info(info)
