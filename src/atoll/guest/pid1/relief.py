"""`POST /relief` (control port): ends the largest processes, for tiers whose kernel ends none when memory is used up.

The host calls when the sandbox's memory is used up. It has then given a small reserve, and counts on an answer before
that is used up too: nothing here waits or takes memory of any size.
"""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from atoll.http1.server import HttpError, Request, Response

ROUTE = ("POST", "/relief")
_AT_ONCE = 64
_BODY_MAX = 4096
_PAGE = os.sysconf("SC_PAGE_SIZE")


async def handle(request: Request) -> Response:
    """A body `{"bytes"}`; 200 with `{"ended": [{"pid", "name", "memory_bytes"}]}`: who was ended to make that room."""
    try:
        needed = int(json.loads(await request.body.read(_BODY_MAX))["bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise HttpError(400, f"malformed wish for memory: {error}") from error
    return Response.json({"ended": end_largest(needed, os.getpid())})


def end_largest(needed: int, spared: int) -> list[dict[str, Any]]:
    """Ends processes, the largest first, until together they had `needed` bytes. `spared`: a pid that is let live."""
    sizes = {pid: size for pid in _pids() if pid != spared and (size := _resident(pid))}
    ended: list[dict[str, Any]] = []
    for pid in sorted(sizes, key=lambda pid: sizes[pid], reverse=True):
        if needed <= 0 or len(ended) >= _AT_ONCE:
            break
        name = _name(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        ended.append({"pid": pid, "name": name, "memory_bytes": sizes[pid]})
        needed -= sizes[pid]
    return ended


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _resident(pid: int) -> int:
    """Bytes; 0 for a process that is gone or dead."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read(128).split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0


def _name(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
            return file.read(64).decode(errors="replace").strip()
    except OSError:
        return ""
