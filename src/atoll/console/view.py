"""What the routes share: who asks, the services, a page out of a template, and how values look to people.

Templates escape every value; none is marked as safe anywhere.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

import atoll
from atoll.console.gate import PREFIX
from atoll.console.guest import Guests
from atoll.console.sessions import Session, Sessions
from atoll.console.terminals import Terminals
from atoll.control.access.auth import DEFAULT_TEAM_ID, Authenticator, Caller
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.services import Services
from atoll.model.errors import InvalidRequest
from atoll.model.lifecycle import shown_state
from atoll.model.sandbox import SandboxRecord
from atoll.wire.rest.errors import error_reply

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a route may use."""

    services: Services
    auth: Authenticator
    nodes: NodeRegistry
    guests: Guests
    sessions: Sessions
    terminals: Terminals


def parts(request: Request) -> Parts:
    """Of the console that serves the request."""
    found: Parts = request.app.state.parts
    return found


def caller(request: Request) -> Caller:
    """Who is logged in. The gate lets nobody else come this far."""
    session: Session = request.state.session
    return session.caller


def field(request: Request, name: str, most: int = 512) -> str:
    """A form's field, "" where it is missing. Raises InvalidRequest: longer than `most` characters."""
    text: str = request.state.form.get(name, "").strip()
    if len(text) > most:
        raise InvalidRequest(f"{name}: longer than {most} characters")
    return text


def number(text: str, name: str, least: int = 0, most: int = 2**31 - 1) -> int:
    """Raises InvalidRequest."""
    if not (text.isascii() and text.isdigit() and len(text) < 12 and least <= int(text) <= most):
        raise InvalidRequest(f"{name} must be a whole number from {least} to {most}, not {text[:40]!r}")
    return int(text)


def page(request: Request, name: str, status: int = 200, /, **values: Any) -> Response:
    """The template `name` with `values`, and what every page knows."""
    session: Session | None = request.state.session
    text = _environment.get_template(name).render(
        **values,
        prefix=PREFIX,
        version=atoll.__version__,
        csrf=session.csrf if session is not None else "",
        is_logged_in=session is not None,
        is_operator=session is not None and session.caller.team_id == DEFAULT_TEAM_ID,
        path=request.scope["path"],
        style_nonce=request.state.style_nonce,
    )
    return HTMLResponse(text, status)


def allow_styles_of_scripts(request: Request) -> None:
    """The page's own scripts may add style elements, which the terminal needs; markup still may not."""
    request.state.style_nonce = secrets.token_urlsafe(16)


def to(path: str) -> Response:
    """See other: a page of the console."""
    return RedirectResponse(PREFIX + path, 303)


def failure(request: Request, error: BaseException) -> Response:
    """An error as a page, or as plain text where no page was asked for."""
    reply = error_reply(error)
    message = str(error) if reply.status < 500 or hasattr(error, "hint") else "internal error; the server's log has it"
    if "text/html" not in request.headers.get("accept", "") or request.headers.get("hx-request"):
        return Response(message, reply.status, media_type="text/plain")
    return page(request, "error.html", reply.status, status=reply.status, message=message)


async def unless_left(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Raises ClientDisconnect, with `work` cancelled: nobody waits for it any more.

    For what a sandbox may keep waiting for as long as it likes; what is left of the request's body is dropped.
    """
    working, leaving = asyncio.create_task(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Streamed(StreamingResponse):
    """Bytes of a sandbox; `stack` is closed at the end, whether the client took all of them or left meanwhile."""

    def __init__(
        self, stream: AsyncIterator[bytes], stack: AsyncExitStack, headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(stream, headers=headers, media_type=media_type)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_left(receive, super().__call__(scope, receive, send))
        finally:
            await self._stack.aclose()


def moment(at: datetime | None) -> str:
    """In UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S") if at is not None else ""


def span(seconds: float) -> str:
    """`2 h 05 min`, `4 min 10 s`, `0 s`."""
    whole = max(0, round(seconds))
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600:02} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 60} min {whole % 60:02} s" if whole >= 60 else f"{whole} s"


def time_left(record: SandboxRecord) -> str:
    """Until its timeout, while it runs."""
    return span((record.end_at - datetime.now(UTC)).total_seconds()) if shown_state(record) == "running" else ""


def size(count: float | None) -> str:
    """Bytes, in the largest unit that leaves a digit before the point."""
    if count is None:
        return "unknown"
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "html"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    auto_reload=False,
)
_environment.filters.update(moment=moment, span=span, size=size, time_left=time_left, shown_state=shown_state)
