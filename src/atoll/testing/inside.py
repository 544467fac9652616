"""Running a program in a sandbox of any tier by nothing but its handle: the guest's process service, spoken by hand.

For the suites that test tiers below the server; with a server, use the SDK.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
from dataclasses import dataclass

from atoll.isolation.base import SandboxHandle
from atoll.model.sandbox import ENVD_PORT

_END_OF_STREAM = 0x02


@dataclass(frozen=True, slots=True)
class Done:
    """What a program left. `code` is None if the guest could not start it; then `err` says why."""

    code: int | None
    out: str
    err: str


async def health(handle: SandboxHandle) -> int:
    """The HTTP status of the guest's health check."""
    request = b"GET /health HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n"
    head, _ = await _exchange(await handle.dial(ENVD_PORT), request)
    return int(head.split(b" ")[1])


async def run(handle: SandboxHandle, script: str, *, user: str = "root", shell: str = "/bin/bash") -> Done:
    """Runs `shell -c script` as `user` to its end. Raises PortClosed, SandboxGone, EOFError (the sandbox died)."""
    message = json.dumps({"process": {"cmd": shell, "args": ["-c", script], "envs": {}}, "stdin": False}).encode()
    body = struct.pack(">BI", 0, len(message)) + message
    authority = base64.b64encode(f"{user}:".encode()).decode()
    head = (
        "POST /process.Process/Start HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n"
        f"Content-Type: application/connect+json\r\nConnect-Protocol-Version: 1\r\nAuthorization: Basic {authority}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    answer_head, answer = await _exchange(await handle.dial(ENVD_PORT), head.encode() + body)
    if b"chunked" in answer_head.lower():
        answer = _dechunk(answer)
    return _collect(answer)


def _collect(stream: bytes) -> Done:
    out, err, code = b"", b"", None
    while len(stream) >= 5:
        flags, length = struct.unpack_from(">BI", stream)
        message = json.loads(stream[5 : 5 + length] or b"{}")
        stream = stream[5 + length :]
        if flags & _END_OF_STREAM:
            if failure := message.get("error"):
                return Done(None, out.decode(errors="replace"), json.dumps(failure))
            return Done(code, out.decode(errors="replace"), err.decode(errors="replace"))
        event = message.get("event", {})
        data = event.get("data", {})
        out += base64.b64decode(data.get("stdout", ""))
        err += base64.b64decode(data.get("stderr", ""))
        if "end" in event:
            code = int(event["end"].get("exitCode", 0))
    raise EOFError(f"the stream broke off; so far: {out!r} {err!r}")


def _dechunk(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size or b"0", 16)
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


async def _exchange(connection: socket.socket, request: bytes) -> tuple[bytes, bytes]:
    loop = asyncio.get_running_loop()
    with connection:
        await loop.sock_sendall(connection, request)
        answer = b""
        while chunk := await loop.sock_recv(connection, 65536):
            answer += chunk
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        raise EOFError("the guest closed the connection without an answer")
    return head, body
