"""What a create call asks for, in the model's types, and the checks that need nothing but the order itself. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.control.sandboxes.sizing import KEYS
from atoll.model.devices import parse_gpu
from atoll.model.errors import InvalidRequest
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import Limits

TIER_KEY = "atoll.tier"
"""Metadata by which a create call asks for an isolation tier."""

NO_NEW_PRIVILEGES_KEY = "atoll.no_new_privileges"
"""Metadata by which a create call gives up `sudo` and every other way to more rights ("true")."""

NETWORK_KEY = "atoll.network_mib_s"
"""Metadata by which a create call bounds what may pass between its sandbox and the world in a second (MiB)."""

DISK_KEY = "atoll.disk_mib_s"
"""Metadata by which a create call bounds how fast its sandbox's disk is read and written (MiB a second, each)."""

GPU_KEY = "atoll.gpu"
"""Metadata by which a create call asks for GPUs (`model.devices.parse_gpu`)."""

RESTART_KEY, RESTART_ALWAYS = "restart", "always"
"""Metadata by which a create call asks that its sandbox is begun anew elsewhere when its node is lost."""

SPREAD_KEY = "atoll.spread"
"""Metadata by which a create call names a group: a team's sandboxes of one group go to different nodes if they can."""

OWN_KEYS = frozenset({TIER_KEY, NETWORK_KEY, DISK_KEY, NO_NEW_PRIVILEGES_KEY, GPU_KEY, SPREAD_KEY, *KEYS, "atoll.sid"})
"""What metadata can ask of Atoll, and the agent runtime's label. Any other `atoll.` key would change nothing."""

MAX_METADATA_BYTES = 64 * 1024
MAX_ENV_BYTES = 128 * 1024
"""Linux hands every process its whole environment; far above this, nothing can be started."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows. Seconds; `domain` is what clients use for host names of sandboxes."""

    max_timeout_s: int = 86400
    max_sandboxes: int = 1000
    domain: str | None = None
    volume_mib: int = 10240
    """How much each volume can hold."""
    volumes_mib: int | None = None
    """What the sizes of all volumes of a node may add up to; None: anything."""
    team_images_mib: int | None = None
    """What templates and snapshots of one team may take of the disk; None: anything."""
    maximum: Limits | None = None
    """How large a sandbox may be; None: as large as asked for."""
    team: Limits | None = None
    """What the limits of all sandboxes of one team may add up to; None: anything."""
    network_mib_s: int | None = None
    """What may pass between a sandbox and the world in a second; None: no limit."""
    disk_mib_s: int | None = None
    """How fast a sandbox's disk is read and written, each; None: no limit."""
    node: Limits | None = None
    """The same of one node."""
    has_objects: bool = False
    """Whether nodes have an object store, through which images and paused sandboxes get to others."""
    insecure_registries: tuple[str, ...] = ()
    """Those of images that are spoken to without TLS."""
    build_timeout_s: int = 3600
    """How long one build of a template may take."""
    team_builds: int = 3
    """How many of a team's builds run at once; others wait."""
    template_wait_s: int = 50
    """How long a create waits for a template that is being built: less than the SDKs wait for an answer (60)."""
    warm: Mapping[str, int] = field(default_factory=dict)
    """Of which templates how many started sandboxes wait for a create."""


@dataclass(frozen=True, slots=True)
class CreateOrder:
    """A create call. Two calls with one idempotency key are alike if `request_digest` is."""

    template: str
    timeout_s: int
    secure: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    env_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    public_traffic: bool = True
    mask_request_host: str | None = None
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    auto_pause: bool = False
    auto_pause_memory: bool = True
    auto_resume: bool = False
    volumes: tuple[tuple[str, str], ...] = ()
    """(name, path inside)."""
    idempotency_key: str | None = None
    request_digest: str = ""


def network_rate(metadata: Mapping[str, str], policy: Policy) -> int | None:
    """MiB a second, or None for no limit. Raises InvalidRequest."""
    return _rate(NETWORK_KEY, metadata, policy.network_mib_s)


def disk_rate(metadata: Mapping[str, str], policy: Policy) -> int | None:
    """MiB a second, or None for no limit. Raises InvalidRequest."""
    return _rate(DISK_KEY, metadata, policy.disk_mib_s)


def _rate(key: str, metadata: Mapping[str, str], most: int | None) -> int | None:
    text = metadata.get(key)
    if text is None:
        return most
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 6 and int(text) > 0):
        raise InvalidRequest(f"metadata {key}: a whole number of MiB a second is needed, not {text[:40]!r}")
    if most is not None and int(text) > most:
        raise InvalidRequest(f"metadata {key}: {text} is more than this server allows, {most}")
    return int(text)


def check_timeout(timeout_s: int, policy: Policy) -> None:
    """Raises InvalidRequest."""
    if not 0 <= timeout_s <= policy.max_timeout_s:
        raise InvalidRequest(f"timeout must be between 0 and {policy.max_timeout_s} seconds, not {timeout_s}")


def check_order(order: CreateOrder, policy: Policy) -> None:
    """Raises InvalidRequest naming what is wrong."""
    check_timeout(order.timeout_s, policy)
    network_rate(order.metadata, policy)
    disk_rate(order.metadata, policy)
    if (gpu := order.metadata.get(GPU_KEY)) is not None:
        parse_gpu(gpu)
    if order.auto_resume and not (order.auto_pause and order.auto_pause_memory):
        raise InvalidRequest(
            "autoResume wakes a sandbox that was paused with its memory at its timeout",
            hint="ask for autoPause, and leave autoPauseMemory out",
        )
    _check_texts("metadata", order.metadata, MAX_METADATA_BYTES)
    unknown = sorted(key for key in order.metadata if key.startswith("atoll.") and key not in OWN_KEYS)
    if unknown:
        raise InvalidRequest(
            f"metadata: {unknown[0][:100]!r} is no key that Atoll knows", hint=f"it knows {', '.join(sorted(OWN_KEYS))}"
        )
    if order.metadata.get(NO_NEW_PRIVILEGES_KEY, "true") != "true":
        raise InvalidRequest(
            f"metadata {NO_NEW_PRIVILEGES_KEY}: only 'true' means something", hint="leave it out for the template's own"
        )
    _check_texts("envVars", order.env_vars, MAX_ENV_BYTES)
    for name in order.env_vars:
        if not name or "=" in name:
            raise InvalidRequest(f"envVars: {name[:100]!r} is not a name of an environment variable")
    host = order.mask_request_host
    if host is not None and (not host or not host.isascii() or not host.isprintable() or " " in host):
        raise InvalidRequest("network.maskRequestHost must be a host name, with `${PORT}` where the port belongs")


def _check_texts(what: str, pairs: Mapping[str, str], limit: int) -> None:
    total = 0
    for key, value in pairs.items():
        if "\0" in key or "\0" in value:
            raise InvalidRequest(f"{what}: a NUL character in {key[:100]!r}")
        try:
            total += len(key.encode()) + len(value.encode())
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{what}: half a surrogate pair in {key[:100]!r}") from error
    if total > limit:
        raise InvalidRequest(f"{what}: {total} bytes in all, more than {limit}")
