"""A request to the guest's control port, spoken by hand: small answers only, never waited for long.

What comes back was written inside the sandbox: numbers to be checked, never anything to act on.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from atoll.isolation.base import CONTROL_PORT
from atoll.isolation.linux.net import guest_socket

_WITHIN_S = 2.0
_ANSWER_MAX = 65536


async def request(
    path: Path, method: str, target: str, body: dict[str, Any] | None = None, within_s: float = _WITHIN_S
) -> dict[str, Any]:
    """The JSON object of a 2xx answer, {} for one without a body. Raises OSError, ValueError, TimeoutError."""
    async with asyncio.timeout(within_s):
        return await _request(path, method, target, json.dumps(body).encode() if body is not None else b"")


async def _request(path: Path, method: str, target: str, body: bytes) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    head = f"{method} {target} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with await guest_socket.connect_guest(path, CONTROL_PORT) as connection:
        await loop.sock_sendall(connection, head.encode() + body)
        answer = b""
        while piece := await loop.sock_recv(connection, _ANSWER_MAX):
            answer += piece
            if len(answer) > _ANSWER_MAX:
                raise ValueError("the guest's answer is too long")
    start, _, rest = answer.partition(b"\r\n\r\n")
    status = start.split(b" ", 2)[1:2]
    if not status or not status[0].startswith(b"2"):
        raise ValueError(f"the guest answered {start[:64]!r}")
    body = json.loads(rest) if rest.strip() else {}
    if not isinstance(body, dict):
        raise ValueError("the guest's answer is no object")
    return body
