"""Where a request is to go, read from its headers or its host name. Pure: no I/O, no look-ups.

Two ways name a sandbox and one of its ports, both E2B's:

- headers `E2b-Sandbox-Id` and `E2b-Sandbox-Port` (what the SDKs send when one URL serves every sandbox);
- the host name `{port}-{id}.{domain}` (what browsers and `sandbox.get_host(port)` use).

Everything else belongs to the control plane. `localhost` is always one of the domains: its sub-domains resolve to
loopback in browsers and in curl, so `http://8000-{id}.localhost:3000/` works without any DNS. Other domains must be
configured: a name that a stranger's DNS points at this machine must not reach a sandbox.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from atoll.model.errors import InvalidRequest
from atoll.model.sandbox import ENVD_PORT, SANDBOX_ID

LOCAL_DOMAIN = "localhost"

_LABEL = re.compile(r"(?P<port>[0-9]{1,5})-(?P<id>[a-z0-9]{1,64})")


@dataclass(frozen=True, slots=True)
class Target:
    """A port of a sandbox that a request names. Whether that sandbox lives is for the route table to say."""

    sandbox_id: str
    port: int
    by_host: bool = False


def domain_of(text: str) -> str:
    """A configured domain as it appears in host names: lower case, without scheme, port or dots around it."""
    return strip_port(text.strip().lower().removeprefix("http://").removeprefix("https://").strip("/")).strip(".")


def strip_port(host: str) -> str:
    """`example.com:3000` → `example.com`; leaves `[::1]` whole."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def from_host(host: str, domains: frozenset[str]) -> Target | None:
    """The target that a Host header names, or None when it is not a sandbox's host name under one of `domains`."""
    label, dot, domain = strip_port(host.lower()).rstrip(".").partition(".")
    if not dot or domain not in domains:
        return None
    match = _LABEL.fullmatch(label)
    if match is None:
        return None
    port = int(match["port"])
    return Target(match["id"], port, by_host=True) if 1 <= port <= 65535 else None


def from_headers(sandbox_id: str, port_text: str | None) -> Target:
    """The target that the routing headers name. A missing port means envd's.

    Raises InvalidRequest for a malformed id or port.
    """
    if SANDBOX_ID.fullmatch(sandbox_id) is None:
        raise InvalidRequest("E2b-Sandbox-Id must be 4 to 64 lower-case letters and digits")
    if port_text is None or port_text == "":
        return Target(sandbox_id, ENVD_PORT)
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and 1 <= int(port_text) <= 65535):
        raise InvalidRequest("E2b-Sandbox-Port must be a port number from 1 to 65535")
    return Target(sandbox_id, int(port_text))
