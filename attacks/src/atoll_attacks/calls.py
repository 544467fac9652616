"""Requests to the server as a hostile client makes them: every byte its own choice."""

from __future__ import annotations

import http.client
import os
import urllib.parse
from collections.abc import Mapping

from atoll_attacks.scene import Scene

ENVD_PORT = 49983


def server_address() -> tuple[str, int]:
    """Where the platform's edge listens."""
    place = urllib.parse.urlsplit(os.environ["E2B_SANDBOX_URL"])
    return place.hostname or "127.0.0.1", place.port or 80


def token_of(sandbox: object) -> str:
    """The access token that the SDK holds for a sandbox."""
    return str(getattr(sandbox, "_envd_access_token", "") or "")


def request(
    method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, timeout_s: float = 15
) -> tuple[int, bytes]:
    """(status, body's first MiB); status 0 if the server hung up or did not answer in time."""
    connection = http.client.HTTPConnection(*server_address(), timeout=timeout_s)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}), skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read(1 << 20)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return 0, f"{type(error).__name__}: {error}".encode()
    finally:
        connection.close()


def guest_request(
    scene: Scene,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    token: str | None = None,
    port: int = ENVD_PORT,
    sandbox_id: str | None = None,
    timeout_s: float = 15,
) -> tuple[int, bytes]:
    """To a port of the attacker's sandbox, with its token unless another (or "") is given."""
    assert scene.sandbox is not None
    chosen = token_of(scene.sandbox) if token is None else token
    common = {"E2b-Sandbox-Id": sandbox_id or scene.sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
    if chosen:
        common["X-Access-Token"] = chosen
    return request(method, path, body, {**common, **(headers or {})}, timeout_s)
