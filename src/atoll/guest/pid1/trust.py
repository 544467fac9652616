"""Makes programs inside trust one more certificate authority: the gateway's, where a rule adds headers to requests.

The certificate goes into the system's bundle (curl, git, OpenSSL, Go) and lies beside it as a file of its own;
variables name both to those who carry a store of their own (Python's requests and pip, Node, Deno, gRPC).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from types import MappingProxyType

from atoll.guest.files.safe_open import read_regular

_MAX_BUNDLE = 16 << 20
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
CERTIFICATE = "/usr/local/share/ca-certificates/atoll-egress.crt"

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "SSL_CERT_FILE": BUNDLE,
        "REQUESTS_CA_BUNDLE": BUNDLE,
        "CURL_CA_BUNDLE": BUNDLE,
        "PIP_CERT": BUNDLE,
        "GIT_SSL_CAINFO": BUNDLE,
        "AWS_CA_BUNDLE": BUNDLE,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": BUNDLE,
        "NODE_EXTRA_CA_CERTS": CERTIFICATE,
        "DENO_CERT": CERTIFICATE,
    }
)


def install(pem: str, env_vars: dict[str, str], root: str = "") -> None:
    """Writes the files and sets the variables that are not set already. Idempotent. Raises OSError."""
    _write(root + CERTIFICATE, pem.encode())
    try:
        known = read_regular(root + BUNDLE, _MAX_BUNDLE)
    except FileNotFoundError:
        known = b""
    if pem.encode() not in known:
        separator = b"" if not known or known.endswith(b"\n") else b"\n"
        _write(root + BUNDLE, known + separator + pem.encode())
    for name, value in ENVIRONMENT.items():
        env_vars.setdefault(name, value)


def _write(path: str, content: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    draft = path + ".atoll"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(draft)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(draft, path)
