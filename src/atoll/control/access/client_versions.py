"""Which client versions were tested, and a line in the log, once, for each newer one that comes.

Newer clients are served like any other: the line shows an operator where to look first when something is odd.
Versions come from `User-Agent` (`e2b-python-sdk/2.63.0`) or from the fields that older SDKs send instead
(`publisher: e2b`, `lang`, `package_version`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import structlog

TESTED = {"e2b-python-sdk": (2, 63, 0), "e2b-js-sdk": (2, 51, 0), "e2b-cli": (2, 19, 0)}
"""The newest version of each client that the tests drive; a test compares it with the matrix."""

MAX_LOGGED = 100
"""Anybody may claim any version: what is remembered of that is bounded."""

_AGENT = re.compile(r"(e2b-(?:python|js)-sdk|e2b-cli)/(\d{1,4})\.(\d{1,4})\.(\d{1,4})")
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})")
_LANGUAGES = {"python": "e2b-python-sdk", "js": "e2b-js-sdk"}

AsgiApp = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
Version = tuple[int, int, int]


class ClientVersionLog:
    """An ASGI application that looks at who comes to another."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._logged: set[tuple[str, Version]] = set()
        self._log = structlog.get_logger("atoll.clients")

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self._look(scope["headers"])
        await self._app(scope, receive, send)

    def _look(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for name, version in clients_of(headers):
            if version > TESTED[name] and (name, version) not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add((name, version))
                self._log.warning(
                    "this client is newer than the newest tested one; it is served all the same",
                    client=name,
                    version=".".join(map(str, version)),
                    tested=".".join(map(str, TESTED[name])),
                )


def clients_of(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, Version]]:
    """The known clients that a request's fields name, with their versions."""
    found: list[tuple[str, Version]] = []
    fields = {name: value.decode("latin-1") for name, value in headers if name in _FIELDS}
    for name, *numbers in _AGENT.findall(fields.get(b"user-agent", "")):
        found.append((name, (int(numbers[0]), int(numbers[1]), int(numbers[2]))))
    if not found and fields.get(b"publisher") == "e2b":
        name = _LANGUAGES.get(fields.get(b"lang", ""), "")
        match = _VERSION.match(fields.get(b"package_version", ""))
        if name and match:
            found.append((name, (int(match[1]), int(match[2]), int(match[3]))))
    return found


_FIELDS = frozenset({b"user-agent", b"publisher", b"lang", b"package_version"})
