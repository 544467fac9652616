"""Where remote nodes are: `ID=HOST:PORT`, as an operator writes it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from atoll.model.errors import InvalidRequest

LOCAL = "local"
"""The id of the node on the control plane's own machine."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """A node that is to say that it is `node_id`, and has a certificate for `host`."""

    node_id: str
    host: str
    port: int


def check_node_id(text: str) -> str:
    """Raises InvalidRequest."""
    if not _ID.fullmatch(text) or text == LOCAL:
        raise InvalidRequest(
            f"a node's id is 1 to 63 of letters, digits, _ . and -, and not {LOCAL!r}: not {text[:80]!r}"
        )
    return text


def parse_address(text: str) -> tuple[str, int]:
    """`host:port`, `[::1]:port`. Raises InvalidRequest."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise InvalidRequest(f"an address looks like node1.example.test:7443, not {text[:100]!r}")
    return host, int(port)


def parse_nodes(entries: Iterable[str]) -> tuple[NodeAddress, ...]:
    """Raises InvalidRequest, for two of one id too."""
    nodes: dict[str, NodeAddress] = {}
    for entry in entries:
        node_id, equals, address = entry.partition("=")
        if not equals:
            raise InvalidRequest(f"a node is written ID=HOST:PORT, not {entry[:100]!r}")
        if check_node_id(node_id) in nodes:
            raise InvalidRequest(f"two nodes are called {node_id!r}")
        nodes[node_id] = NodeAddress(node_id, *parse_address(address))
    return tuple(nodes.values())
