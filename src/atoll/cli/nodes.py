"""`atoll node`: the certificate of a node on another machine, and the node itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from atoll.config import Settings
from atoll.model.errors import InvalidRequest
from atoll.model.node_addresses import check_node_id, parse_address
from atoll.server.launcher import Agent
from atoll.tls.peers import node_identity, nodes_authority


def write_certificate(settings: Settings, hosts: Sequence[str], days: int, target: Path) -> None:
    """For a node that is reached under `hosts`; a file that only its owner may read. Raises OSError, PlatformError."""
    identity = node_identity(nodes_authority(settings.data_dir), hosts, days)
    target.unlink(missing_ok=True)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(identity)


def agent(node_id: str, listen: str, certificate: Path) -> Agent:
    """Raises InvalidRequest."""
    try:
        identity = certificate.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the certificate cannot be read: {error}") from error
    host, port = parse_address(listen)
    return Agent(check_node_id(node_id), host, port, identity)
