"""TLS at the gateway, for hosts under a rule: our certificate towards the sandbox, the real one checked by the host."""

from __future__ import annotations

import ssl
from functools import cached_property

from atoll.tls import Authority


class Interception:
    """Needs an authority before a sandbox's TLS can be ended; the node brings it with the first rule."""

    def __init__(self) -> None:
        self._authority: Authority | None = None

    def use(self, certificate: str, key: str) -> None:
        """The authority as PEM, which stays in memory. Raises ValueError."""
        self._authority = Authority.from_pem(certificate, key)

    @cached_property
    def client_context(self) -> ssl.SSLContext:
        """Towards the real server: the host's trust store, its name checked, HTTP/1.1 only (what is rewritten)."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    def server_context(self, name: str) -> ssl.SSLContext:
        """Towards the sandbox, as the server `name`. Raises OSError: there is no authority."""
        if self._authority is None:
            raise OSError("rules for HTTPS need a certificate authority, which this gateway has not")
        return self._authority.server_context(name)
