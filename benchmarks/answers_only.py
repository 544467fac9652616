"""The floor below every server: one that knows all answers by heart. What the SDK costs against it, no server can save.

Answers a create, `commands.run` and a kill with constant bytes. Run as `python answers_only.py`; prints its port.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

import httptools
import uvloop


def _answer(status: str, content_type: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _envelope(message: dict[str, Any], flags: int = 0) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(body)) + body


_SANDBOX = {
    "sandboxID": "ionlyanswersaaaaaaaa",
    "templateID": "base",
    "clientID": "floor",
    "envdVersion": "0.6.13",
    "envdAccessToken": "0" * 64,
    "domain": None,
}
_CREATED = _answer("201 Created", "application/json", json.dumps(_SANDBOX).encode())
_RAN = _answer(
    "200 OK",
    "application/connect+json",
    _envelope({"event": {"start": {"pid": 7}}})
    + _envelope({"event": {"end": {"exitCode": 0, "exited": True, "status": "exit status 0"}}})
    + _envelope({}, 2),
)
_KILLED = b"HTTP/1.1 204 No Content\r\n\r\n"


class Answers(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one by shape only

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_message_complete(self) -> None:
        assert self._transport is not None
        if self._parser.get_method() == b"DELETE":
            self._transport.write(_KILLED)
        else:
            self._transport.write(_RAN if self._url.endswith(b"/Start") else _CREATED)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Answers, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
