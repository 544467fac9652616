"""Asks the platform what no SDK asks for: one GET, its answer as JSON."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlencode

from atoll.cli.environment import client_environ
from atoll.config import Settings
from atoll.model.errors import NotFound, PlatformError

_WITHIN_S = 30


def get_of_sandbox(settings: Settings, sandbox_id: str, what: str, query: dict[str, Any], *, version: str = "") -> Any:
    """GET {version}/sandboxes/{id}/{what} of the service that the environment names, else of the data directory's.

    Raises Conflict (no server), NotFound, PlatformError.
    """
    named = {"E2B_API_KEY", "E2B_API_URL"} <= os.environ.keys()
    environ = os.environ if named else client_environ(settings)
    path = f"{version}/sandboxes/{quote(sandbox_id, safe='')}/{what}?{urlencode(query)}"
    request = urllib.request.Request(environ["E2B_API_URL"] + path, headers={"X-API-Key": environ["E2B_API_KEY"]})
    try:
        with urllib.request.urlopen(request, timeout=_WITHIN_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise NotFound(f"sandbox {sandbox_id!r} not found", hint="`atoll ls` shows those that there are") from None
        raise PlatformError(f"the server answered {error.code}: {error.read(500).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise PlatformError(f"the server does not answer: {error}") from error
