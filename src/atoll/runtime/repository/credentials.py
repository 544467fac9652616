"""Git credentials that never enter the sandbox: taken out of the URL, and added to requests by the platform's egress.

Inside, git asks a host for a repository without a word of who asks; the platform adds the header `Authorization` to
what leaves for that host over HTTPS. So no `.git/config`, no command line and no environment inside has the token.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit, urlunsplit


@dataclass(frozen=True, slots=True)
class Authorization:
    """What requests to `origin` (a host, or `scheme://host:port` where that is not HTTPS on 443) carry."""

    origin: str
    header: str = field(repr=False)


def basic(origin: str, user: str, password: str) -> Authorization:
    """As git sends a user and a password or token."""
    return Authorization(origin, "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())


def without_credentials(url: str) -> tuple[str, Authorization | None]:
    """A URL of HTTP or HTTPS as it may be known inside, and what was taken out of it. Others stay as they are."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return url, None
    host = parts.netloc.rpartition("@")[2]
    plain = parts.scheme == "https" and parts.port in (None, 443)
    origin = parts.hostname or "" if plain else f"{parts.scheme}://{host}"
    kept = urlunsplit((parts.scheme, host, parts.path, parts.query, parts.fragment))
    return kept, basic(origin, unquote(parts.username), unquote(parts.password or ""))
