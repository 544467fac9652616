"""Cells for a sandbox's code interpreter: text, errors and charts of what was run in its default context."""

from __future__ import annotations

from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.console.gate import PREFIX
from atoll.console.routes.sandboxes import running
from atoll.console.view import Streamed, field, page, parts, unless_left

_MAX_CODE = 100_000
LANGUAGES = ("python", "javascript", "typescript", "bash", "r", "java")


async def show(request: Request) -> Response:
    """The form."""
    return page(request, "code.html", one=await running(request), languages=LANGUAGES)


async def run(request: Request) -> Response:
    """The interpreter's own lines of JSON, as they come."""
    record = await running(request)
    code, language = field(request, "code", _MAX_CODE), field(request, "language", 20)
    stack = AsyncExitStack()
    try:
        guest = await stack.enter_async_context(parts(request).guests(record.sandbox_id))
        lines = await unless_left(request.receive, stack.enter_async_context(guest.execute(code, language)))
    except BaseException:
        await stack.aclose()
        raise
    return Streamed(lines, stack, {}, "application/x-ndjson")


_CODE = f"{PREFIX}/sandboxes/{{id}}/code"
ROUTES = [Route(_CODE, show), Route(_CODE, run, methods=["POST"])]
