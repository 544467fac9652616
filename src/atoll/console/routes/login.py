"""Logging in with an API key, and out."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.console.gate import LOGIN, PREFIX, cookie_name, cookie_of
from atoll.console.sessions import LIFETIME_S
from atoll.console.view import field, page, parts, to
from atoll.model.errors import Unauthorized

_FAILED_S = 0.5
"""How long a wrong key waits for its answer."""


async def show(request: Request) -> Response:
    """The form."""
    return page(request, "login.html", next=_next(request.query_params.get("next", "")), wrong="")


async def log_in(request: Request) -> Response:
    """A session for the key, and on to the page that was asked for."""
    onward = _next(field(request, "next"))
    try:
        caller = await parts(request).auth.authenticate(field(request, "key"))
    except Unauthorized as error:
        await asyncio.sleep(_FAILED_S)
        return page(request, "login.html", 401, next=onward, wrong=str(error))
    scheme = request.url.scheme
    sessions = parts(request).sessions
    sessions.end(cookie_of(request.headers, scheme))
    answer, token = to(onward), sessions.begin(caller)
    request.state.session = sessions.find(token)  # whose log-in it was, for the audit log
    answer.set_cookie(
        cookie_name(scheme),
        token,
        max_age=int(LIFETIME_S),
        path="/" if scheme == "https" else PREFIX,
        secure=scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


async def log_out(request: Request) -> Response:
    """This session alone."""
    scheme = request.url.scheme
    parts(request).sessions.end(cookie_of(request.headers, scheme))
    answer = to("/login")
    answer.delete_cookie(
        cookie_name(scheme),
        path="/" if scheme == "https" else PREFIX,
        secure=scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return answer


def _next(path: str) -> str:
    """Where to go after the log-in, below PREFIX; only pages of the console."""
    plain = path.removeprefix(PREFIX)
    is_ours = path.startswith(PREFIX + "/") and not path.startswith(LOGIN)
    is_ours = is_ours and not any(one in path for one in ("\\", "//", "..", "%"))
    return plain if is_ours and path.isprintable() and len(path) < 300 else "/"


ROUTES = [
    Route(LOGIN, show),
    Route(LOGIN, log_in, methods=["POST"]),
    Route(f"{PREFIX}/logout", log_out, methods=["POST"]),
]
