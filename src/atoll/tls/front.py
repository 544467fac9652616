"""The TLS context of a server that runs for months: certificates are renewed or read again without a restart."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path

from atoll.model.errors import InvalidRequest
from atoll.tls.authority import Authority


def from_authority(authority: Authority, names: tuple[str, ...], alpn: tuple[str, ...]) -> ssl.SSLContext:
    """Certificates of our own CA, made anew before they end."""
    return _refreshing(lambda: authority.server_context(*names, alpn=alpn))


def from_files(certificate: Path, key: Path, alpn: tuple[str, ...]) -> ssl.SSLContext:
    """A certificate chain and its key (PEM), read again when a file changed. Raises InvalidRequest."""
    stamps: tuple[int, int] | None = None
    current: ssl.SSLContext | None = None

    def load() -> ssl.SSLContext:
        nonlocal stamps, current
        found = certificate.stat().st_mtime_ns, key.stat().st_mtime_ns
        if current is None or found != stamps:
            current, stamps = _load(certificate, key, alpn), found
        return current

    try:
        return _refreshing(load)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(
            f"the certificate {certificate} with the key {key} cannot be used: {error}",
            hint="both are PEM files; the certificate comes first in its chain",
        ) from error


def _load(certificate: Path, key: Path, alpn: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(list(alpn))
    context.load_cert_chain(certificate, key)
    return context


def _refreshing(current: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """A context that hands every handshake to `current()`; when that fails, the last good one serves on."""
    context = last = current()

    def choose(tls: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal last
        with contextlib.suppress(OSError, ssl.SSLError):  # a half-written file: the next handshake tries again
            last = current()
        if last is not context:
            tls.context = last

    context.sni_callback = choose
    return context
