"""Asks the platform what no SDK asks for: one GET, its answer as JSON."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from atoll.model.errors import NotFound, PlatformError

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
