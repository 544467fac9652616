"""Short orders to a living guest over its control port: a JSON body, and 204 for an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from atoll.isolation.base import CONTROL_PORT, SandboxHandle
from atoll.model.errors import PlatformError

_WITHIN_S = 5.0


async def order(handle: SandboxHandle, path: str, body: Mapping[str, Any], *, within_s: float = _WITHIN_S) -> bytes:
    """`POST path`; the answer's head. Raises SandboxGone, PlatformError (its guest does not do it)."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.0\r\nhost: guest\r\ncontent-length: {len(content)}\r\n\r\n".encode()
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_unix_connection(sock=await handle.dial(CONTROL_PORT))
            try:
                writer.write(head + content)
                answer = await reader.readuntil(b"\r\n\r\n")
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
        raise PlatformError(f"the guest of {handle.sandbox_id!r} did not do {path}: {error}") from error
    if answer.split()[1:2] != [b"204"]:
        raise PlatformError(f"the guest of {handle.sandbox_id!r} refused {path}")
    return answer
