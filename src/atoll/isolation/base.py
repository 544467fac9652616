"""The contract between a node and an isolation tier. These docstrings are the law.

`atoll.testing.backend_contract` holds every backend to it.

The guest's transport, the same for every tier: one Unix stream socket per sandbox at `paths.state_dir / "guest.sock"`,
listening before `create` returns (connections made earlier wait in its backlog). A connection begins with one line

    ATOLL/1 <port>\n

and is from then on a byte stream to that port: 49983 and 49999 are the guest's own HTTP servers, 0 is the guest's
control server (host only: never reachable through the edge), any other number is relayed by the guest to
127.0.0.1:<port> inside, after one answer byte: 0x00 connected, 0x01 refused. A tier that can reach the sandbox's
network namespace directly does so inside `dial` and spares the relay.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from atoll.model.errors import NotOffered
from atoll.model.sandbox import Limits, OomKill, SandboxPaths, SandboxSpec, SandboxStats

GUEST_SOCKET = "guest.sock"
PREAMBLE = "ATOLL/1 {port}\n"
CONTROL_PORT = 0


class Capability(StrEnum):
    """What a tier can do on this machine, asked instead of `isinstance`."""

    LIMITS_MEMORY = "limits_memory"
    LIMITS_CPU = "limits_cpu"
    LIMITS_PIDS = "limits_pids"
    LIMITS_DISK = "limits_disk"
    FREEZE = "freeze"
    RESUME = "resume"
    FORK = "fork"
    EGRESS_POLICY = "egress_policy"
    ROOTLESS = "rootless"


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `atoll doctor`."""

    subject: str
    verdict: Verdict
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a sandbox ended, as its backend saw it. `killed` is True when `kill()` did it."""

    killed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class ReclaimReport:
    """What `reclaim` removed, by count."""

    processes: int = 0
    cgroups: int = 0


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """What every backend gets from the composition root."""

    run_dir: Path
    """The backend's own directory for sockets and records that belong to no single sandbox."""
    guest_entry: str = "atoll.guest.main:main"
    """Import path of the guest, called in the sandbox's first process as main(listener, spec).

    Its module may have a `start_programs_in(run)`, called before: programs are to be started by `run(start)`."""
    tools_dir: Path | None = None
    """Where programs lie that `atoll doctor --fix` has unpacked for us; None: only the machine's own are used."""
    environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The server's environment: PATH, and the settings that belong to one tier alone (each tier documents its own)."""


@dataclass(frozen=True, slots=True)
class EgressSockets:
    """What leads out of a sandbox: both sockets lie in its network namespace. Whoever gets them closes them.

    Every TCP connection to an address that is not the sandbox's own arrives at `connections` (a listener), with the
    original destination in SO_ORIGINAL_DST; every datagram to port 53 of anywhere arrives at `questions`. Nothing else
    leaves. Nobody else accepts or receives; what came before they were fetched waits in their queues.
    """

    connections: socket.socket
    questions: socket.socket


class SandboxHandle(ABC):
    """A live sandbox as its backend sees it. Every method is safe to call at any time, also after the end."""

    sandbox_id: str
    tier: str
    stages: Mapping[str, float] = MappingProxyType({})
    """When each step of its create was reached, in `time.monotonic()` seconds. A tier may tell none."""

    @abstractmethod
    async def dial(self, port: int) -> socket.socket:
        """A connected, non-blocking stream socket to `port` inside; the preamble is already sent and answered.

        Raises PortClosed (nothing listens), SandboxGone.
        """

    async def egress_sockets(self) -> EgressSockets | None:
        """The way out, once for each server that runs the sandbox. None without EGRESS_POLICY: then nothing gets out.

        Raises SandboxGone, PlatformError.
        """
        return None

    @abstractmethod
    async def stats(self) -> SandboxStats:
        """One reading, from the host's side. Raises SandboxGone."""

    def on_oom(self, tell: Callable[[OomKill], None]) -> None:
        """From now on `tell` hears (in the loop, never twice of one) of processes ended because memory ran out.

        A tier that cannot tell one process from another never calls it.
        """
        return

    @abstractmethod
    async def update(self, limits: Limits) -> None:
        """New limits, at once; whoever asks for them writes `record` down.

        Raises SandboxGone, BackendUnavailable where the tier cannot enforce one of them.
        """

    @abstractmethod
    async def freeze(self) -> None:
        """Stops every process where it stands. Idempotent. Raises SandboxGone, BackendUnavailable (no FREEZE)."""

    @abstractmethod
    async def thaw(self) -> None:
        """Lets them go on. Idempotent. Raises SandboxGone."""

    @abstractmethod
    async def wait(self) -> ExitReport:
        """Returns once the sandbox has ended, however it ended. May be awaited by many; cancel-safe."""

    @abstractmethod
    async def kill(self) -> None:
        """Ends every process of it and frees mounts, cgroups, namespaces and sockets. Idempotent, within 10 s.

        `paths.state_dir` itself stays (its owner removes it). Raises PlatformError if something could not be freed.
        """

    @abstractmethod
    def record(self) -> Mapping[str, Any]:
        """JSON-able facts from which `adopt` finds this sandbox again: as in its directory (`isolation.directory`)."""


class IsolationBackend(ABC):
    """One tier. Made by the entry point's factory: `backend(config: BackendConfig) -> IsolationBackend`."""

    name: str
    starts_beside_doctor = False
    """Whether `start` may run while `doctor` looks: a machine on which the tier fails is then left as it was by
    `aclose`. Saves the time of the shorter of them."""

    @property
    @abstractmethod
    def capabilities(self) -> frozenset[Capability]:
        """What this tier can do on this machine; fixed after `start`."""

    @abstractmethod
    async def doctor(self) -> list[Finding]:
        """Checks the machine, changes nothing. The tier works iff no finding is FAIL. Callable before `start`."""

    async def fix(self) -> list[str]:
        """Mends what `doctor` found, as far as files of our own can do it; the machine's configuration stays as it is.

        Returns what was done, in words. Raises BackendUnavailable when a try failed.
        """
        return []

    @abstractmethod
    async def start(self) -> None:
        """Gets ready (zygote, pools). Raises BackendUnavailable."""

    @abstractmethod
    async def aclose(self) -> None:
        """Ends the backend's own helpers. Sandboxes are left alone. Idempotent."""

    @abstractmethod
    async def create(self, spec: SandboxSpec, paths: SandboxPaths) -> SandboxHandle:
        """Makes a sandbox whose guest socket accepts. On failure or cancellation nothing that lives is left of it.

        Before anything of a user's can run, what `adopt` needs is in its directory (`isolation.directory.begin`): for
        the server that comes after this one was killed. Raises CreateFailed.
        """

    @abstractmethod
    async def adopt(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any]) -> SandboxHandle:
        """A handle for a sandbox that an earlier server made, by its `record`. Raises SandboxGone if it is no more."""

    async def resume(self, spec: SandboxSpec, paths: SandboxPaths) -> SandboxHandle:
        """Makes a paused sandbox run again from what is in its directory. As `create`.

        Raises NotOffered without RESUME, CreateFailed (it stays paused).
        """
        raise NotOffered(f"the tier {self.name!r} cannot make a sandbox run again from its directory")

    async def fork(self, source: SandboxHandle, spec: SandboxSpec, paths: SandboxPaths) -> SandboxHandle:
        """Another sandbox, as `spec` says, with the memory and the disk that `source` has now. As `create`.

        Raises NotOffered without FORK, SandboxGone, CreateFailed.
        """
        raise NotOffered(f"the tier {self.name!r} cannot copy a sandbox that runs")

    async def copy_written(self, state_dir: Path, target: Path) -> None:
        """Copies what a sandbox has written into the empty directory `target`, as a layer for others.

        `state_dir` is the directory of one that has been killed. Raises NotOffered, OSError.
        """
        raise NotOffered(f"the tier {self.name!r} cannot keep what a sandbox has written")

    @abstractmethod
    async def reclaim(self, spare: Set[str]) -> ReclaimReport:
        """Ends and frees everything that was ever made under its run dir, but for what it has adopted.

        `spare` names groups (`record()["group"]`) that stay too. Called once at start, after `adopt`, before `create`.
        """
