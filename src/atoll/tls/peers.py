"""Who control and its remote nodes are to each other: identities of one authority, each in one PEM file.

    key, certificate, certificate of the authority      in this order

A node's certificate is for a server, control's for a client: a node that has fallen into wrong hands cannot give orders
to another.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Sequence
from pathlib import Path

from atoll.model.errors import InvalidRequest
from atoll.tls.authority import Authority, Usage

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]{1,16384}-----END CERTIFICATE-----")
CONTROL = "control"
_CONTROL_DAYS = 3650
"""Longer than any server runs: it is made anew at each start and lies on no disk."""


def nodes_authority(data_dir: Path) -> Authority:
    """The control plane's, made where there is none. Raises PlatformError."""
    return Authority.kept_in(data_dir / "tls", "nodes")


def node_identity(authority: Authority, hosts: Sequence[str], days: int) -> str:
    """For a node that is reached under `hosts` (names or addresses)."""
    certificate = authority.issue(hosts, days=days)
    return authority.leaf_key_pem.decode() + certificate.decode() + authority.pem


def control_identity(authority: Authority) -> str:
    """For the control plane."""
    certificate = authority.issue([CONTROL], usage=Usage.CLIENT, days=_CONTROL_DAYS)
    return authority.leaf_key_pem.decode() + certificate.decode() + authority.pem


def peer_context(identity: str, *, server: bool) -> ssl.SSLContext:
    """Shows `identity`, and accepts only peers of its authority. Raises InvalidRequest."""
    certificates = _CERTIFICATE.findall(identity)
    if len(certificates) < 2:
        raise InvalidRequest(
            "the node's certificate file holds no key with its certificate and its authority's",
            hint="`atoll node certificate` on the machine of the control plane makes one",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    descriptor = os.memfd_create("identity", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, identity.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        context.load_verify_locations(cadata=certificates[-1])
    except (OSError, ValueError) as error:  # SSLError is an OSError
        raise InvalidRequest(f"the node's certificate file cannot be used: {error}") from error
    finally:
        os.close(descriptor)
    return context
