"""Asks the platform what no SDK asks for: one request, its answer as JSON."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from atoll.model.errors import Conflict, Forbidden, InvalidRequest, NotFound, PlatformError

_WITHIN_S = 30


def get_of_sandbox(
    environ: Mapping[str, str], sandbox_id: str, what: str, query: dict[str, Any], *, version: str = ""
) -> Any:
    """GET {version}/sandboxes/{id}/{what} of the service that `environ` names. Raises NotFound, PlatformError."""
    path = f"{version}/sandboxes/{quote(sandbox_id, safe='')}/{what}?{urlencode(query)}"
    base = environ.get("E2B_API_URL") or f"https://api.{environ.get('E2B_DOMAIN', 'e2b.app')}"
    request = urllib.request.Request(base + path, headers={"X-API-Key": environ["E2B_API_KEY"]})
    try:
        with urllib.request.urlopen(request, timeout=_WITHIN_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise NotFound(f"sandbox {sandbox_id!r} not found", hint="`atoll ls` shows those that there are") from None
        raise PlatformError(f"the server answered {error.code}: {error.read(500).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise PlatformError(f"the server does not answer: {error}") from error


_REFUSALS = {400: InvalidRequest, 403: Forbidden, 404: NotFound, 409: Conflict}


def ask(environ: Mapping[str, str], method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """One request of the operator's; None where nothing is answered. Raises AtollError as the server refused it."""
    data = json.dumps(body).encode() if body is not None else None
    headers = {"X-API-Key": environ["E2B_API_KEY"], "Content-Type": "application/json"}
    request = urllib.request.Request(environ["E2B_API_URL"] + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=_WITHIN_S) as answer:
            text = answer.read()
            return json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        text = error.read(4000).decode(errors="replace")
        try:
            message = str(json.loads(text)["message"])
        except (ValueError, KeyError, TypeError):
            message = f"the server answered {error.code}: {text}"
        raise _REFUSALS.get(error.code, PlatformError)(message) from error
    except (OSError, ValueError) as error:
        raise PlatformError(f"the server does not answer: {error}") from error
