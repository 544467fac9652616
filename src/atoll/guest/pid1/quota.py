"""The limit of processes, kept from inside, for tiers whose processes the host cannot count (gVisor).

The sandbox's own kernel does the counting and refusing; the guest only holds two descriptors of its pids controller,
which nobody else inside can open any more. The host reads and sets through the control port. No user may have all of
them: a limit per user (RLIMIT_NPROC, inherited by all that the guest starts) leaves root a way to end a fork bomb.
"""

from __future__ import annotations

import json
import os
import resource

from atoll.http1.server import HttpError, Request, Response

ROUTES = (("GET", "/quota"), ("POST", "/quota"))
_MAX_BODY = 4096


class Quota:
    """One guest's, over two open files of its pids controller."""

    def __init__(self, current: int, most: int) -> None:
        self._current = current
        self._most = most

    @staticmethod
    def adopt(directory: str, pids: int) -> Quota:
        """Of the pids controller mounted at `directory`. Before the guest starts. Raises OSError."""
        flags = (("pids.current", os.O_RDONLY), ("pids.max", os.O_RDWR))
        quota = Quota(*(os.open(f"{directory}/{name}", mode | os.O_CLOEXEC) for name, mode in flags))
        quota._write_limit(pids)
        return quota

    async def read(self, request: Request) -> Response:
        """`GET /quota` (control port): how many processes there are now."""
        return Response.json({"pids": int(os.pread(self._current, 64, 0))})

    async def change(self, request: Request) -> Response:
        """`POST /quota` (control port): a new limit of processes."""
        try:
            pids = json.loads(await request.body.read(_MAX_BODY))["pids"]
            if type(pids) is not int or pids < 1:
                raise ValueError("pids must be a positive number")
        except (ValueError, KeyError, TypeError) as error:
            raise HttpError(400, f"malformed quota: {error}") from error
        self._write_limit(pids)
        return Response(204)

    def _write_limit(self, pids: int) -> None:
        os.pwrite(self._most, str(pids).encode(), 0)
        most = share_of_a_user(pids)
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def share_of_a_user(pids: int) -> int:
    """How many of a sandbox's processes one of its users may have. Pure."""
    return pids - max(4, min(32, pids // 8))
