"""The floor for files: a bare server that answers `/files` as the SDK expects and does nothing else.

No users, no tokens, no sandbox: GET sends a file, POST stores a multipart or octet-stream body. asyncio and httptools,
the same building blocks as the product. Run as `python fileserver.py DIRECTORY`; prints its port.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import urllib.parse
from pathlib import Path
from typing import BinaryIO

import httptools

SMALL = 256 * 1024
"""Files up to this size are sent in one write; larger ones by sendfile."""


class Files(asyncio.Protocol):
    """One connection."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url = b""
        self._boundary = b""
        self._head = b""
        self._tail = b""
        self._file: BinaryIO | None = None
        self._path = self._root

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type" and b"boundary=" in value:
            self._boundary = b"\r\n--" + value.split(b"boundary=", 1)[1].strip(b'"') + b"--\r\n"

    def on_headers_complete(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self._url.decode()).query)
        self._path = self._root / os.path.basename(query.get("path", ["unnamed"])[0])
        if self._parser.get_method() == b"POST":
            self._file = self._path.open("wb")

    def on_body(self, body: bytes) -> None:
        assert self._file is not None
        if not self._boundary:
            self._file.write(body)
            return
        if self._head is not None and not self._head.endswith(b"\r\n\r\n"):
            head, blank, rest = (self._head + body).partition(b"\r\n\r\n")
            if not blank:
                self._head += body
                return
            self._head, body = head + blank, rest
        held = self._tail + body
        keep = len(self._boundary)
        self._file.write(held[:-keep])
        self._tail = held[-keep:]

    def on_message_complete(self) -> None:
        assert self._transport is not None
        if self._file is not None:
            if self._boundary and self._tail != self._boundary:
                self._file.write(self._tail.removesuffix(self._boundary))
            self._file.close()
            entry = [{"path": str(self._path), "name": self._path.name, "type": "file"}]
            self._answer(json.dumps(entry).encode(), "application/json")
            return
        size = self._path.stat().st_size
        if size <= SMALL:
            self._answer(self._path.read_bytes(), "application/octet-stream")
            return
        self._transport.write(_head(size, "application/octet-stream"))
        self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        assert self._transport is not None
        with self._path.open("rb") as file:
            await asyncio.get_running_loop().sendfile(self._transport, file)

    def _answer(self, body: bytes, content_type: str) -> None:
        assert self._transport is not None
        self._transport.write(_head(len(body), content_type) + body)


def _head(size: int, content_type: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {size}\r\n\r\n".encode()


async def main(root: Path) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Files(root), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
