"""What a sandbox may reach, and what it reached. Atoll's own is the list of connections."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from atoll.model.network import HIDDEN, NetworkConnection
from atoll.model.sandbox import SandboxRecord
from atoll.wire.rest.base import Out, StrictIn, Text


class Transform(StrictIn):
    headers: dict[str, str] | None = None


class NetworkRule(StrictIn):
    """What is done to requests for the host that it stands under."""

    transform: Transform | None = None


class NetworkEgress(StrictIn):
    """What create and update say alike about what a sandbox may reach. `egressProxy` is only looked at to refuse it."""

    allow_out: list[Text] | None = Field(default=None, validation_alias="allowOut")
    deny_out: list[Text] | None = Field(default=None, validation_alias="denyOut")
    dns_servers: list[Text] | None = Field(default=None, validation_alias="dnsServers")
    egress_proxy: dict[str, Any] | None = Field(default=None, validation_alias="egressProxy")
    rules: dict[Text, list[NetworkRule] | None] | None = None


class NetworkConfig(NetworkEgress):
    """Of a create."""

    allow_public_traffic: bool | None = Field(default=None, validation_alias="allowPublicTraffic")
    mask_request_host: Annotated[str, Field(max_length=255)] | None = Field(
        default=None, validation_alias="maskRequestHost"
    )
    https_ports: list[int] | None = Field(default=None, validation_alias="httpsPorts")


class NetworkUpdate(NetworkEgress):
    """PUT /sandboxes/{id}/network. What only a create can say is looked at to refuse it."""

    allow_internet_access: bool | None = None
    allow_public_traffic: bool | None = Field(default=None, validation_alias="allowPublicTraffic")
    mask_request_host: str | None = Field(default=None, validation_alias="maskRequestHost")
    https_ports: list[int] | None = Field(default=None, validation_alias="httpsPorts")


class NetworkDetail(Out):
    allow_public_traffic: bool = Field(default=True, serialization_alias="allowPublicTraffic")
    allow_out: list[str] | None = Field(default=None, serialization_alias="allowOut")
    deny_out: list[str] | None = Field(default=None, serialization_alias="denyOut")
    dns_servers: list[str] | None = Field(default=None, serialization_alias="dnsServers")
    rules: dict[str, list[dict[str, Any]]] | None = None


class Connection(Out):
    """GET /sandboxes/{id}/network/connections. Atoll's own."""

    timestamp: datetime
    protocol: Literal["tcp", "dns"]
    source_address: str = Field(serialization_alias="sourceAddress")
    source_port: int = Field(serialization_alias="sourcePort")
    destination_address: str = Field(serialization_alias="destinationAddress")
    destination_port: int = Field(serialization_alias="destinationPort")
    name: str
    verdict: str
    allowed: bool
    bytes_out: int = Field(serialization_alias="bytesOut")
    bytes_in: int = Field(serialization_alias="bytesIn")
    rewritten: bool
    closed_at: datetime | None = Field(default=None, serialization_alias="closedAt")


def network_detail(record: SandboxRecord) -> NetworkDetail:
    """As a detail shows it. Values of headers are hidden: they may be secrets."""
    network = record.network
    return NetworkDetail(
        allow_public_traffic=record.traffic_access_token is None,
        allow_out=list(network.allow_out) or None,
        deny_out=list(network.deny_out) or None,
        dns_servers=list(network.dns_servers) if network.dns_servers is not None else None,
        rules={
            host: [{"transform": {"headers": dict.fromkeys(one, HIDDEN)}} for one in sets]
            for host, sets in network.rules.items()
        }
        or None,
    )


def connection(one: NetworkConnection) -> Connection:
    """One of a list."""
    return Connection(
        timestamp=one.time,
        protocol="dns" if one.protocol == "dns" else "tcp",
        source_address=one.source_address,
        source_port=one.source_port,
        destination_address=one.address,
        destination_port=one.port,
        name=one.name,
        verdict=one.verdict,
        allowed=one.allowed,
        bytes_out=one.bytes_out,
        bytes_in=one.bytes_in,
        rewritten=one.rewritten,
        closed_at=one.closed_at,
    )
