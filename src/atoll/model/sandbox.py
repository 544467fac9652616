"""What a sandbox is, as the rest of the code speaks of it. Pure data, no I/O, no clock."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from atoll.model.devices import DeviceEdits, GpuUse
from atoll.model.network import NetworkPolicy
from atoll.model.volume import DeviceMount, VolumeMount

ENVD_PORT = 49983
"""The guest's envd protocol (process, filesystem, files). E2B's number."""

INTERPRETER_PORT = 49999
"""The guest's code interpreter. E2B's number."""

HUNG_UP = "atoll-hung-up"
"""The header of a guest's answer that comes after it has ended its connections."""

ENVD_VERSION = "0.6.13"
"""The envd version that the guest behaves like; drives the SDKs' feature gates."""

SANDBOX_ID = re.compile(r"[a-z0-9]{4,64}")
"""Ids appear in host names (`{port}-{id}.{domain}`): lower-case letters and digits only."""


class SandboxState(StrEnum):
    """Where a sandbox is in its life; `lifecycle.py` holds the legal moves."""

    CREATING = "creating"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    KILLING = "killing"
    ENDED = "ended"


class PauseMode(StrEnum):
    """What a pause or a snapshot keeps: the disk and what runs, or the disk alone."""

    MEMORY = "memory"
    FILESYSTEM = "filesystem"


class EndReason(StrEnum):
    """Why a sandbox ended."""

    KILLED = "killed"
    TIMEOUT = "timeout"
    DIED = "died"
    CREATE_FAILED = "create_failed"
    LOST = "lost"
    """The server found its record but not the sandbox (machine restarted, guest killed while the server was down)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a sandbox may use. Enforced by the host, never by the sandbox."""

    cpu_count: int = 2
    memory_mib: int = 1024
    disk_mib: int = 10240
    pids: int = 2048

    def as_json(self) -> dict[str, int]:
        """The inverse of `from_json`."""
        return {name: getattr(self, name) for name in Limits.__slots__}

    @staticmethod
    def from_json(value: Mapping[str, int]) -> Limits:
        """Raises TypeError for what `as_json` did not make."""
        return Limits(**value)


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """A sandbox as it was asked for: made by control, handed on to the process that becomes it. Values only.

    `env_vars` are the template's merged with the create call's. `access_token` is None for an insecure sandbox.
    `default_workdir` None means the home of the user in question. Its host name is its id.
    """

    sandbox_id: str
    template_id: str
    limits: Limits = field(default_factory=Limits)
    env_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    access_token: str | None = field(default=None, repr=False)
    default_user: str = "user"
    default_workdir: str | None = None
    start_cmd: str | None = None
    interpreter: bool = False
    """True where the template has a Jupyter kernel: the guest starts the default context at once, in the background."""
    ca_certificate: str | None = field(default=None, repr=False)
    """PEM that programs inside are to trust. Added by a node whose gateway terminates TLS to carry out header rules."""
    image_id: str | None = None
    """The image that it stands on (`images.layers`); None: the newest build of its template."""
    one_off: bool = False
    """No other of the same kind is expected soon: nothing is made ahead of need for the next."""
    tier: str | None = None
    """A tier asked for by name, or None for the node's own choice."""
    traffic_access_token: str | None = field(default=None, repr=False)
    """What traffic to user ports must carry (`Route.traffic_access_token`); None: public."""
    mask_request_host: str | None = None
    """`Route.mask_request_host`."""
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    """What it may reach."""
    no_new_privileges: bool = False
    """No program that it starts gains rights by another one's: set-uid and file capabilities mean nothing, `sudo` and
    `su` fail."""
    volumes: tuple[VolumeMount, ...] = ()
    """Mounted into it, on its node."""
    disk_mib_s: int | None = None
    """How much its disk gives and takes in a second, each, in MiB; None: no limit."""
    generation: int = 1
    """Grows whenever it is begun anew on another node under the same id: of two only the later one counts."""
    gpu: str | None = None
    """The GPUs that it asks for (`model.devices.parse_gpu`); None: none."""
    devices: tuple[str, ...] = ()
    """Those that it has, as CDI names them. Added by its node, and kept for as long as the sandbox is there."""

    def for_guest(self) -> SandboxSpec:
        """The part that may be known inside: nothing that the host keeps from the sandbox's own programs."""
        public = replace(self, image_id=None, one_off=False, tier=None, network=NetworkPolicy())
        public = replace(public, disk_mib_s=None, gpu=None, devices=(), generation=1)
        return replace(public, traffic_access_token=None, mask_request_host=None, volumes=())

    def as_json(self) -> dict[str, Any]:
        """The inverse of `from_json`. It holds secrets."""
        plain = {name: getattr(self, name) for name in SandboxSpec.__slots__}
        return plain | {
            "limits": self.limits.as_json(),
            "env_vars": dict(self.env_vars),
            "network": self.network.as_json(),
            "volumes": [mount.as_json() for mount in self.volumes],
            "devices": list(self.devices),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> SandboxSpec:
        """Raises KeyError, TypeError, ValueError for what `as_json` did not make."""
        return SandboxSpec(
            **{
                **value,
                "limits": Limits.from_json(value["limits"]),
                "env_vars": dict(value["env_vars"]),
                "network": NetworkPolicy.from_json(value["network"]),
                "volumes": tuple(VolumeMount.from_json(mount) for mount in value.get("volumes", ())),
                "devices": tuple(value.get("devices", ())),
            }
        )


@dataclass(frozen=True, slots=True)
class SandboxPaths:
    """What a node adds to a spec for its isolation backend.

    `lower_dirs` are the layers that it stands on, top first, read-only: directories, or image files whose directory
    `upper` is the layer (those of snapshots). `memory` is what a snapshot kept of what ran, for the same tier; None: a
    guest starts anew. `state_dir` is the sandbox's own directory on the host
    (made by the node, mode 0700): the backend keeps everything it needs for this sandbox below it and nowhere else,
    apart from cgroups.
    """

    lower_dirs: tuple[Path, ...]
    state_dir: Path
    memory: Path | None = None
    volumes: tuple[DeviceMount, ...] = ()
    """The devices of its volumes, which stay at least until it is made."""
    devices: DeviceEdits = field(default_factory=DeviceEdits)
    """What is added for its GPUs."""


@dataclass(frozen=True, slots=True)
class SandboxStats:
    """One reading. Bytes and percent of one CPU (200.0 = two cores busy). `None` where the tier does not know."""

    cpu_used_pct: float | None
    memory_used: int | None
    memory_cache: int | None
    memory_total: int
    disk_used: int | None
    disk_total: int
    pids: int | None
    gpus: tuple[GpuUse, ...] = ()
    """Of its GPUs, where the host knows."""


@dataclass(frozen=True, slots=True)
class OomKill:
    """A process of a sandbox that the kernel ended because the sandbox's memory was used up. None: not known.

    `name` is chosen by the sandbox's user. `pid` as seen inside. `others`: how many more went the same way since the
    last one that was reported (a flood is summed up).
    """

    name: str | None = None
    pid: int | None = None
    memory_bytes: int | None = None
    others: int = 0


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """What control knows of a sandbox; one row of the store."""

    sandbox_id: str
    team_id: str
    template_id: str
    template_alias: str | None
    node_id: str
    tier: str
    state: SandboxState
    started_at: datetime
    end_at: datetime
    limits: Limits
    metadata: Mapping[str, str] = field(default_factory=dict)
    env_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    envd_access_token: str | None = field(default=None, repr=False)
    traffic_access_token: str | None = field(default=None, repr=False)
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    auto_pause: bool = False
    """At its timeout it is paused, not ended; with its memory if `auto_pause_memory`."""
    auto_pause_memory: bool = True
    auto_resume: bool = False
    """Traffic to it lets it run again, if it was paused with its memory."""
    pause_mode: PauseMode | None = None
    """What is kept of it, while it is paused."""
    guest_answered: bool = True
    """Before it was paused."""
    mask_request_host: str | None = None
    volumes: tuple[VolumeMount, ...] = ()
    generation: int = 1
    """As `SandboxSpec.generation`."""
    kept_image: str | None = None
    """What the object store has of it, so that it can go on elsewhere: of a paused one its disk."""
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
