"""Keeps a plain HTTP connection to the name it was opened for: every request's Host is checked before it leaves."""

from __future__ import annotations

from collections.abc import Callable

import httptools

from atoll.node.gateway.sniff import host_name


class HostGuard:
    """Feed it the client's bytes in order; it answers whether they may go on.

    A connection that was allowed by name must not carry a request for another one (the server behind a shared address
    would answer it). After an upgrade the rest is opaque and passes.
    """

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed
        self._parser = httptools.HttpRequestParser(self)
        self._hosts: list[str] = []
        self._bad = False
        self._opaque = False

    def on_message_begin(self) -> None:
        self._hosts = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"host":
            self._hosts.append(value.decode("latin-1").strip())

    def on_headers_complete(self) -> None:
        name = host_name(self._hosts[0]) if len(self._hosts) == 1 else None
        if name is None or not self._allowed(name):
            self._bad = True

    def feed(self, data: bytes) -> bool:
        """False: cut the connection; nothing of `data` may leave."""
        if self._opaque:
            return True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # An upgrade is opaque only if its own request was in order.
            self._opaque = True
        except httptools.HttpParserError:
            return False
        return not self._bad
