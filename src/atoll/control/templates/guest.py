"""The part of envd's protocol that a template build speaks to its own sandbox: run a command, store a file.

Over sockets that the sandbox's route makes; Connect with JSON, as in `wire.envd` (the guest's side of it).
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpcore

from atoll.control.guest_http import ENVELOPE, LAST, NO_TIMEOUT, guest_headers, guest_pool, guest_url, messages
from atoll.control.templates.steps import Command
from atoll.model.errors import PlatformError, SandboxGone
from atoll.model.seams import Route


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
        self._pool = guest_pool(route)

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
        headers = guest_headers(self._route, command.user, "application/connect+json")
        content = ENVELOPE.pack(0, len(message)) + message
        outcome: Outcome | None = None
        try:
            async with self._pool.stream(
                "POST", guest_url("/process.Process/Start"), headers=headers, content=content, extensions=NO_TIMEOUT
            ) as answer:
                if answer.status != 200:
                    raise PlatformError(f"the build's sandbox answered {answer.status} to a command")
                async for flags, body in messages(answer.aiter_stream()):
                    found = _failed(body) if flags & LAST else _take(body, on_output)
                    outcome = outcome if flags & LAST and outcome else found or outcome
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError, ValueError) as error:
            raise PlatformError(f"the build's sandbox cannot be reached: {error or type(error).__name__}") from error
        if outcome is None:
            raise SandboxGone(self._route.sandbox_id, "its stream ended before the command did")
        return outcome

    async def store(self, path: str, pieces: AsyncIterator[bytes], size: int) -> None:
        """Writes a file as root, its parents made where they are missing."""
        headers = [*guest_headers(self._route, "root", "application/octet-stream"), ("Content-Length", str(size))]
        url = guest_url("/files?" + urlencode({"path": path, "username": "root"}))
        try:
            answer = await self._pool.request("POST", url, headers=headers, content=pieces, extensions=NO_TIMEOUT)
        except (httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
            raise PlatformError(f"the build's sandbox cannot be reached: {error or type(error).__name__}") from error
        if answer.status >= 300:
            reason = answer.content[:500].decode(errors="replace")
            raise PlatformError(f"the build's sandbox did not take {path}: {reason}")


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
