"""The answers that the edge gives by itself. Texts and JSON shapes are E2B's: the SDKs match parts of them. Pure.

Who asks for HTML (a browser) gets a page that says the same.
"""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from typing import Any

from atoll.edge.head import RequestHead, reason_of

NOT_FOUND = "The sandbox was not found"
PORT_CLOSED = "The sandbox is running but port is not open"
LOST = "The connection to the sandbox was lost"

CORS = (
    b"access-control-allow-origin: *\r\n"
    b"access-control-expose-headers: Location, Cache-Control, X-Content-Type-Options, Content-Disposition, "
    b"Content-Range, Accept-Ranges, Connect-Protocol-Version, Connect-Content-Encoding\r\n"
)
"""What a page in a browser needs to read a guest's answer; tokens travel in fields, never in cookies."""

INERT = b"content-security-policy: sandbox\r\nx-content-type-options: nosniff\r\n"
"""For files of a sandbox, which a browser may show on the platform's own origin: no scripts, no guessed types."""

_PREFLIGHT_METHODS = b"HEAD, GET, POST, PUT, PATCH, DELETE"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: one status, one text, some facts for the JSON body."""

    status: int
    message: str
    facts: tuple[tuple[str, Any], ...] = ()
    hint: str = ""

    def render(self, request: RequestHead | None, *, keep_alive: bool, cors: bool = False) -> bytes:
        """The bytes to send: HTML for browsers, else JSON `{…facts, "message", "code"}`."""
        if request is not None and accepts_html(request):
            kind, body = b"text/html; charset=utf-8", self._page()
        else:
            facts = dict(self.facts)
            shape: dict[str, Any] = {}
            if "sandboxId" in facts:
                shape["sandboxId"] = facts.pop("sandboxId")
            shape |= {"message": self.message, "code": self.status, **facts}
            kind, body = b"application/json; charset=utf-8", json.dumps(shape, separators=(",", ":")).encode()
        return b"".join(
            (
                b"HTTP/1.1 %d %b\r\n" % (self.status, reason_of(self.status)),
                b"content-type: ",
                kind,
                b"\r\ncontent-length: %d\r\ncache-control: no-store\r\n" % len(body),
                CORS if cors else b"",
                b"" if keep_alive else b"connection: close\r\n",
                b"\r\n",
                b"" if request is not None and request.method == b"HEAD" else body,
            )
        )

    def _page(self) -> bytes:
        facts = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in self.facts)
        title = html.escape(self.message)
        hint = f"<p>{html.escape(self.hint)}</p>" if self.hint else ""
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}"
            "dt{color:#777;font-size:.8rem}dd{margin:0 0 .5rem;font-family:monospace}</style>"
            f"<h1>{title}</h1>{hint}<dl>{facts}</dl></html>"
        ).encode()


def accepts_html(request: RequestHead) -> bool:
    """True for a browser's navigation: it names text/html itself, API clients do not."""
    accept = request.get(b"accept")
    return accept is not None and b"text/html" in accept.lower()


def sandbox_not_found(sandbox_id: str) -> Answer:
    return Answer(
        502, NOT_FOUND, (("sandboxId", sandbox_id),), hint="It was killed, reached its timeout, or never existed."
    )


def port_closed(sandbox_id: str, port: int) -> Answer:
    return Answer(
        502,
        PORT_CLOSED,
        (("sandboxId", sandbox_id), ("port", port)),
        hint=f"Start a server in the sandbox that listens on port {port}, then load this page again.",
    )


def connection_lost(sandbox_id: str, port: int, detail: str = LOST) -> Answer:
    return Answer(502, detail, (("sandboxId", sandbox_id), ("port", port)))


def traffic_token_missing(sandbox_id: str) -> Answer:
    return Answer(
        403,
        "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing",
        (("sandboxId", sandbox_id),),
    )


def traffic_token_invalid(sandbox_id: str) -> Answer:
    return Answer(
        403,
        "Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid",
        (("sandboxId", sandbox_id),),
    )


def preflight(request: RequestHead) -> bytes:
    """The answer to a browser's CORS preflight for a guest's own ports: anything, from anywhere, for two hours."""
    requested = request.get(b"access-control-request-headers") or b"*"
    return (
        b"HTTP/1.1 204 No Content\r\naccess-control-allow-origin: *\r\naccess-control-allow-methods: "
        + _PREFLIGHT_METHODS
        + b"\r\naccess-control-allow-headers: "
        + requested
        + b"\r\naccess-control-max-age: 7200\r\nvary: Access-Control-Request-Headers\r\n"
        + (b"\r\n" if request.keep_alive else b"connection: close\r\n\r\n")
    )
