"""record.json: what a node writes down about a live sandbox so that the next server can adopt it.

Lives in the sandbox's state directory (0700), mode 0600: it holds the access tokens that the edge checks. Written whole
and renamed, so a reader sees all of it or none. Not synced to disk: a machine that goes down takes the sandbox with it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.model.network import NetworkPolicy

RECORD = "record.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """`handle` is the backend's own part (`SandboxHandle.record`), opaque here."""

    sandbox_id: str
    tier: str
    template_id: str
    envd_access_token: str | None = field(default=None, repr=False)
    traffic_access_token: str | None = field(default=None, repr=False)
    mask_request_host: str | None = None
    handle: Mapping[str, Any] = field(default_factory=dict)
    network: NetworkPolicy = field(default_factory=NetworkPolicy)


_FIELDS = ("sandbox_id", "tier", "template_id", "envd_access_token", "traffic_access_token", "mask_request_host")


def write(state_dir: Path, record: NodeRecord) -> None:
    """Raises OSError."""
    body: dict[str, Any] = {name: getattr(record, name) for name in _FIELDS}
    body |= {"version": VERSION, "network": record.network.as_json(), "handle": dict(record.handle)}
    draft = str(state_dir / (RECORD + ".new"))
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(json.dumps(body).encode())
    os.rename(draft, state_dir / RECORD)


def read(state_dir: Path) -> NodeRecord | None:
    """None if there is none, or none that this version can use: such a sandbox cannot be adopted."""
    try:
        body = json.loads((state_dir / RECORD).read_text())
        if body["version"] != VERSION or body["sandbox_id"] != state_dir.name:
            return None
        return NodeRecord(
            **{name: body[name] for name in _FIELDS},
            network=NetworkPolicy.from_json(body.get("network")),
            handle=dict(body["handle"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
