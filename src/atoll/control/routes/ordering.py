"""From wire bodies to the model's types: what a create asks for, and what of it is not offered. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from atoll.control.sandboxes.orders import CreateOrder
from atoll.control.secrets.placeholders import ANY, is_all_known
from atoll.model.errors import Conflict, InvalidRequest, NotOffered
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import SandboxRecord, SandboxState
from atoll.wire.rest.network import NetworkConfig, NetworkEgress, NetworkRule, NetworkUpdate
from atoll.wire.rest.sandboxes import NewSandboxV2

_LISTED_STATES = {"running": SandboxState.RUNNING, "paused": SandboxState.PAUSED}


def order_from(body: NewSandboxV2, default_timeout_s: int, *, secure: bool, idempotency_key: str | None) -> CreateOrder:
    """Raises NotOffered for a field that this Atoll cannot honour."""
    network = body.network or NetworkConfig()
    _refuse_unoffered(body, network)
    return CreateOrder(
        template=body.template_id,
        timeout_s=body.timeout if body.timeout is not None else default_timeout_s,
        secure=secure,
        metadata=body.metadata or {},
        env_vars=body.env_vars or {},
        public_traffic=network.allow_public_traffic is not False,
        mask_request_host=network.mask_request_host,
        network=network_from(body.allow_internet_access, network),
        auto_pause=bool(body.auto_pause),
        auto_pause_memory=body.auto_pause_memory is not False,
        auto_resume=body.auto_resume is not None and body.auto_resume.enabled,
        volumes=tuple((mount.name, mount.path) for mount in body.volume_mounts or ()),
        idempotency_key=idempotency_key,
        request_digest=hashlib.sha256(body.model_dump_json().encode()).hexdigest() if idempotency_key else "",
    )


def _refuse_unoffered(body: NewSandboxV2, network: NetworkConfig) -> None:
    unoffered = {
        "iam": (body.iam or {}).get("tokens"),
        "network.httpsPorts": network.https_ports,
    }
    for name, value in unoffered.items():
        if value:
            raise NotOffered(f"{name} is not supported by this server yet", hint="create the sandbox without it")


def refuse_create_only_fields(given: NetworkUpdate) -> None:
    """Raises InvalidRequest for a part of the network that cannot be changed while the sandbox runs."""
    fixed = {
        "allowPublicTraffic": given.allow_public_traffic,
        "maskRequestHost": given.mask_request_host,
        "httpsPorts": given.https_ports,
    }
    for name, value in fixed.items():
        if value is not None:
            raise InvalidRequest(f"{name} cannot be changed once the sandbox runs", hint="say it in the create call")


def network_from(allow_internet: bool | None, network: NetworkEgress) -> NetworkPolicy:
    """What a create or an update of the network says. Raises InvalidRequest, NotOffered."""
    if network.egress_proxy:
        raise NotOffered(
            "network.egressProxy is not supported by this server", hint="leave it out: what a sandbox sends goes direct"
        )
    rules = network.rules or {}
    _refuse_unknown(network, rules)
    _refuse_placeholders(rules)
    return NetworkPolicy.checked(
        allow_internet=allow_internet is not False,
        allow_out=network.allow_out or (),
        deny_out=network.deny_out or (),
        dns_servers=network.dns_servers,
        rules={
            host: [rule.transform.headers or {} for rule in given or () if rule.transform is not None]
            for host, given in rules.items()
        },
    )


def _refuse_unknown(network: NetworkEgress, rules: Mapping[str, Sequence[NetworkRule] | None]) -> None:
    """Of a newer SDK; ignored, a sandbox might reach what it must not."""
    given = [rule for some in rules.values() for rule in some or ()]
    for part in (network, *given, *(rule.transform for rule in given if rule.transform is not None)):
        for name, value in (part.model_extra or {}).items():
            if value:
                raise NotOffered(f"network: {name[:100]!r} is not supported by this server", hint="leave it out")


def _refuse_placeholders(rules: Mapping[str, Sequence[NetworkRule] | None]) -> None:
    """What is not a secret's stays unresolved: it would go out as if it were the value."""
    for given in rules.values():
        for rule in given or ():
            headers = (rule.transform.headers if rule.transform is not None else None) or {}
            if not all(is_all_known(value) for value in headers.values()):
                raise NotOffered(
                    f"rules: of what {ANY}…}} stands for this server knows secrets alone", hint="name a secret"
                )


def states_from(parts: Sequence[str] | None) -> frozenset[SandboxState]:
    """`running,paused`, or the parameter repeated. Raises InvalidRequest."""
    if not parts:
        return frozenset(_LISTED_STATES.values())
    names = [name for part in parts for name in part.split(",") if name]
    unknown = [name for name in names if name not in _LISTED_STATES]
    if unknown or not names:
        raise InvalidRequest(f"state must be running, paused or both, not {unknown[0][:50] if unknown else ''!r}")
    return frozenset(_LISTED_STATES[name] for name in names)


def aware(moment: datetime | None) -> datetime | None:
    """A time without a zone is in UTC."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def already_running(record: SandboxRecord) -> Conflict:
    """What resuming a running sandbox answers."""
    return Conflict(f"sandbox {record.sandbox_id!r} is already running")
