"""Domain mode: the server's names under one domain, over TLS, and what a client needs to trust them.

https://api.{domain}[:port]          the control plane
https://{port}-{id}.{domain}[:port]  a port of a sandbox, also envd's: clients that know no E2B_SANDBOX_URL use it
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from atoll.config import Settings
from atoll.edge import ALPN, bind
from atoll.model.errors import InvalidRequest
from atoll.tls import Authority, from_authority, from_files

HTTPS_PORT = 443
BUNDLE = "bundle.pem"


class CertificateFiles:
    """An operator's certificate and key, copied to where the process that serves them may read them. Raises OSError."""

    def __init__(self, certificate: Path, key: Path, place: Path, user: int | None) -> None:
        self.certificate, self.key = place / "certificate.pem", place / "key.pem"
        self._from = certificate, key
        self._user = user
        self._stamps: tuple[int, ...] | None = None
        place.mkdir(mode=0o700, exist_ok=True)
        if user is not None:
            os.chown(place, user, user)
        self.refresh()

    def refresh(self) -> None:
        """Copies them again if one has changed."""
        stamps = tuple(path.stat().st_mtime_ns for path in self._from)
        if stamps == self._stamps:
            return
        for source, copy in zip(self._from, (self.certificate, self.key), strict=True):
            draft = copy.with_suffix(".new")
            draft.unlink(missing_ok=True)  # not into a file, or through a link, that the serving process has put there
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
                file.write(source.read_bytes())
                if self._user is not None:
                    os.fchown(file.fileno(), self._user, self._user)
            draft.replace(copy)
        self._stamps = stamps


@dataclass(frozen=True, slots=True)
class TlsDomain:
    """A domain that is served over TLS: bound, not listening yet."""

    domain: str
    """With its port, unless that is 443: what clients take as E2B_DOMAIN."""
    sock: socket.socket
    context: ssl.SSLContext
    ca_bundle: Path | None
    """The system's authorities and ours in one file; None: certificates are the operator's."""
    files: CertificateFiles | None = None
    """The operator's files; a process that may read them calls `refresh` now and then."""


def open_domain(settings: Settings, place: Path, user: int | None) -> TlsDomain | None:
    """Binds the domain's port; None without TLS. An operator's certificate is copied below `place`.

    Raises InvalidRequest, PlatformError, OSError.
    """
    files = settings.tls_cert, settings.tls_key
    if settings.tls not in ("off", "auto"):
        raise InvalidRequest(f"ATOLL_TLS must be auto or off, not {settings.tls!r}")
    if (files[0] is None) != (files[1] is None):
        raise InvalidRequest("--tls-cert and --tls-key belong together")
    if settings.tls == "off" and files[0] is None:
        return None
    if settings.domain is None:
        raise InvalidRequest("TLS needs a domain", hint="add --domain, for example --domain sbx.localhost:8443")
    name, port = split_domain(settings.domain)
    bundle: Path | None = None
    copies: CertificateFiles | None = None
    if files[0] is not None and files[1] is not None:
        from_files(files[0], files[1], ALPN)  # says in the operator's words what is wrong with them
        copies = CertificateFiles(files[0], files[1], place / "tls", user)
        context = from_files(copies.certificate, copies.key, ALPN)
    else:
        directory = settings.data_dir / "tls"
        authority = Authority.kept_in(directory, "domain")
        context = from_authority(authority, (name, f"*.{name}"), ALPN)
        bundle = _write_bundle(directory / BUNDLE, authority.pem)
    sock = bind(settings.host, port)
    port = int(sock.getsockname()[1])
    return TlsDomain(name if port == HTTPS_PORT else f"{name}:{port}", sock, context, bundle, copies)


def split_domain(text: str) -> tuple[str, int]:
    """`sbx.example.test:8443` → name and port; 443 without one, 0 for a free one. Raises InvalidRequest."""
    name, _, port = text.strip().strip(".").lower().partition(":")
    if not name or (port and not (port.isascii() and port.isdigit() and int(port) <= 65535)):
        raise InvalidRequest(f"a domain looks like sbx.example.test or sbx.localhost:8443, not {text!r}")
    return name, int(port) if port else HTTPS_PORT


def domain_environ(domain: str, api_key: str, ca_bundle: str | None) -> dict[str, str]:
    """The variables for a client that comes by domain. `SSL_CERT_FILE` is Python's, `NODE_EXTRA_CA_CERTS` Node's."""
    environ = {"E2B_API_KEY": api_key, "E2B_DOMAIN": domain}
    if ca_bundle is not None:
        environ |= {"SSL_CERT_FILE": ca_bundle, "NODE_EXTRA_CA_CERTS": ca_bundle}
    return environ


def _write_bundle(path: Path, ours: str) -> Path:
    """`SSL_CERT_FILE` replaces the system's authorities, so the file has to hold them as well."""
    system = ""
    with contextlib.suppress(OSError):
        system = Path(ssl.get_default_verify_paths().cafile or os.devnull).read_text()
    draft = path.with_suffix(".new")
    draft.write_text(f"{system.rstrip()}\n{ours}")
    draft.replace(path)
    return path
