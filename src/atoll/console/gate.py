"""What every request for the console passes: the session, and for one that changes something its origin and token.

Three walls against other sites, each enough by itself: the cookie is `SameSite=Strict`, `Origin` must be the host that
was asked, and the session's CSRF token must be in the form or in a header. Every answer carries the content security
policy: scripts and styles are files of the console, nothing is inline, no other host is spoken to.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from urllib.parse import parse_qsl, quote, urlsplit

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from atoll.console.sessions import Session, Sessions
from atoll.control.access.auth import Authenticator
from atoll.control.access.gate import REQUEST_ID, UNROUTED, Answered, known
from atoll.control.access.rates import CallRates
from atoll.model.errors import AtollError, Forbidden, InvalidRequest, Unauthorized

PREFIX = "/console"
LOGIN = f"{PREFIX}/login"
STATIC = f"{PREFIX}/static/"
MAX_FORM = 256 * 1024
"""Bytes. Files are not forms: their bodies are streamed."""
_FORM = "application/x-www-form-urlencoded"
_SAFE = ("GET", "HEAD")
_COUNTED = re.compile(rf"{PREFIX}/sandboxes/[^/]*/(?:set_timeout|resume)")
"""What REST counts too (`control.access.rates`): each call is an event, which is stored and sent to webhooks."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{nonce}; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: a browser would send `Origin: null` with forms then.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Failed = Callable[[Request, BaseException], Response]

_log = structlog.get_logger("atoll.console")


def cookie_name(scheme: str) -> str:
    """Over TLS the prefix keeps a sandbox's host name below the same domain from setting it."""
    return "__Host-atoll-console" if scheme == "https" else "atoll-console"


def cookie_of(headers: Headers, scheme: str) -> str:
    """The session's token, or "". Other applications of the host may have cookies of any form: not by SimpleCookie."""
    return cookie_parser(headers.get("cookie", "")).get(cookie_name(scheme), "")


class ConsoleGate:
    """See the module. Puts `session` (or None) and `form` into the request's state. `failed` makes an error a page."""

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        auth: Authenticator,
        failed: Failed,
        answered: Callable[[Answered], None],
    ) -> None:
        self._app = app
        self._sessions = sessions
        self._auth = auth
        self._failed = failed
        self._answered = answered
        self._rates = CallRates(time.monotonic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status, request_id = time.perf_counter(), 0, secrets.token_hex(8)
        scope = {**scope, "state": {"session": None, "form": {}, "style_nonce": ""}}
        request = Request(scope, receive)

        async def guarded(message: Message) -> None:
            nonlocal status
            is_start = message["type"] == "http.response.start"
            if is_start:
                headers = MutableHeaders(scope=message)
                nonce = scope["state"]["style_nonce"]
                headers["Content-Security-Policy"] = POLICY.format(nonce=f" 'nonce-{nonce}'" if nonce else "")
                headers.update(_HEADERS)
                headers[REQUEST_ID.decode()] = request_id
                headers.setdefault("Cache-Control", "no-store")
            await send(message)
            if is_start:  # a client that has gone got none
                status = message["status"]

        try:
            with structlog.contextvars.bound_contextvars(request_id=request_id):
                try:
                    if (refused := await self._refused(request)) is not None:
                        await refused(scope, receive, guarded)
                    else:
                        await self._app(scope, receive, guarded)
                except ClientDisconnect:
                    pass  # nobody is there to get an answer
                except OSError:
                    raise  # the client has gone
                except Exception as error:
                    if not isinstance(error, AtollError):
                        _log.exception("request.failed", method=request.method, path=scope["path"][:200])
                    if status:
                        raise
                    await self._failed(request, error)(scope, receive, guarded)
        finally:
            # A stranger's path or method is no label.
            route = getattr(scope.get("route"), "path", UNROUTED)
            method = known(request.method)
            state, seconds = scope["state"], time.perf_counter() - began
            who = state["session"].caller if state["session"] is not None else None
            target = {**scope.get("path_params", {}), **state.get("made", {})}
            self._answered(Answered(request_id, method, route, status, seconds, who, target))

    async def _refused(self, request: Request) -> Response | None:
        """The answer to one that goes no further. Raises AtollError."""
        path: str = request.scope["path"]  # the one that is routed; `request.url` is made of the Host field too
        if path.startswith(STATIC):
            return None
        session = await self._session(request)
        request.state.session = session
        if request.method not in _SAFE:
            check_origin(request.headers)
            await _read_form(request)
        if path == LOGIN:
            return None
        if session is None:
            return _to_login(request)
        if request.method not in _SAFE:
            given = request.headers.get("x-csrf-token") or request.state.form.get("csrf", "")
            if not hmac.compare_digest(given.encode(), session.csrf.encode()):
                raise Forbidden("the form is of another session", hint="load the page again and repeat it")
            if _COUNTED.fullmatch(path):
                self._rates.count(session.caller.key)
        return None

    async def _session(self, request: Request) -> Session | None:
        token = cookie_of(request.headers, request.scope["scheme"])
        session = self._sessions.find(token) if token else None
        if session is None:
            return None
        try:
            await self._auth.authenticate(session.caller.key)
        except Unauthorized:  # its key was revoked meanwhile
            self._sessions.end(token)
            return None
        return session


def check_origin(headers: Mapping[str, str]) -> None:
    """Raises Forbidden, unless the page that sends the request is of the host that gets it."""
    origin, host = headers.get("origin", ""), headers.get("host", "")
    try:
        sender = urlsplit(origin).netloc
    except ValueError:
        sender = ""
    if not host or sender.lower() != host.lower():
        raise Forbidden("the request does not come from a page of this console", hint="open the console itself")
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise Forbidden("the request comes from another site", hint="open the console itself")


async def _read_form(request: Request) -> None:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        return
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM:
            raise InvalidRequest(f"the form is larger than {MAX_FORM} bytes")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=100)
    except ValueError as error:
        raise InvalidRequest("the form cannot be read") from error
    request.state.form = dict(pairs)


def _to_login(request: Request) -> Response:
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"HX-Redirect": LOGIN})
    if request.method not in _SAFE or "text/html" not in request.headers.get("accept", "text/html"):
        return Response("log in first", 401, media_type="text/plain")
    return RedirectResponse(f"{LOGIN}?next={quote(request.scope['path'], safe='/')}", 303)
