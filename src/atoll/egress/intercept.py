"""TLS at the gateway, for hosts under a rule: our certificate towards the sandbox, the real one checked by the host."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from functools import cached_property

from atoll.isolation.base import SandboxHandle
from atoll.isolation.guest_client import order
from atoll.tls import Authority

_TELL_S = 5.0


class Interception:
    """`authority` is made when it is first needed: most servers never do."""

    def __init__(self, authority: Callable[[], Authority]) -> None:
        self._make_authority = authority

    @cached_property
    def authority(self) -> Authority:
        """Raises PlatformError."""
        return self._make_authority()

    @cached_property
    def client_context(self) -> ssl.SSLContext:
        """Towards the real server: the host's trust store, its name checked, HTTP/1.1 only (what is rewritten)."""
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        return context

    def server_context(self, name: str) -> ssl.SSLContext:
        """Towards the sandbox, as the server `name`."""
        return self.authority.server_context(name)


async def tell_guest_to_trust(handle: SandboxHandle, pem: str) -> None:
    """Puts our certificate into a living sandbox's trust store, over the guest's control port.

    Raises SandboxGone, PlatformError (its guest does not do it).
    """
    await order(handle, "/init", {"caCertificate": pem}, within_s=_TELL_S)
