"""The contract between a node and an isolation tier. These docstrings are the law.

    create ─► handle ── pause(mode) ─► record + directory ── resume(record) ─► handle
                └────── snapshot(mode) ─► layer, memory ──── create(paths) ──► another sandbox; a fork is both

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

import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from atoll.model.errors import BackendUnavailable, NotOffered, SandboxGone
from atoll.model.sandbox import Limits, OomKill, PauseMode, SandboxPaths, SandboxSpec, SandboxStats

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
    PAUSE = "pause"
    """`pause(FILESYSTEM)` and `resume`."""
    PAUSE_MEMORY = "pause_memory"
    """`pause(MEMORY)` too: what runs goes on after `resume`."""
    MEMORY_ON_DISK = "memory_on_disk"
    """A memory pause holds no process and no memory, and outlives a restart of the machine."""
    SNAPSHOT = "snapshot"
    """`snapshot(FILESYSTEM)` while it runs, and `create` on the layer that it made."""
    SNAPSHOT_MEMORY = "snapshot_memory"
    """`snapshot(MEMORY)` too, and `create` with the memory that it made."""
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

    Its module may have a `begin()`: what that returns gets what the tier has (`guest/tier_parts.py`); a third one."""
    tools_dir: Path | None = None
    """Where programs lie that `atoll doctor --fix` has unpacked for us; None: only the machine's own are used."""
    environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The server's environment: PATH, and the settings that belong to one tier alone (each tier documents its own)."""
    at_once: Limits | None = None
    """What all sandboxes of the server together, of every tier, may use of memory and processes at a time."""


@dataclass(frozen=True, slots=True)
class EgressSockets:
    """What leads out of a sandbox: both sockets lie in its network namespace. The caller closes them.

    Every TCP connection to an address that is not the sandbox's own arrives at `connections` (a listener), with the
    original destination in SO_ORIGINAL_DST; every datagram to port 53 of anywhere arrives at `questions`. Nothing else
    leaves. Nobody else accepts or receives; what came before they were fetched waits in their queues.
    """

    connections: socket.socket
    questions: socket.socket


@dataclass(frozen=True, slots=True)
class Captured:
    """The parts of an image, where `SandboxHandle.snapshot` or `IsolationBackend.keep_written` has put them.

    `layer` holds what differs from the layers that the sandbox stands on: a directory, or an image file (see
    `SandboxPaths.lower_dirs`); None: nothing does. `memory` is the tier's own, readable by `create` of the same tier;
    None without memory.
    """

    layer: Path | None
    memory: Path | None = None


@dataclass(frozen=True, slots=True)
class DiskUse:
    """A sandbox's disk that lies in a sparse file of the host's. Bytes."""

    allocated: int
    """What its programs were given, written or not."""
    taken: int
    """What it takes of the host's file system."""
    free: int
    """What it could still give them, by its size."""


class SandboxHandle(ABC):
    """A live sandbox as its backend sees it. Every method is safe to call at any time, also after the end."""

    sandbox_id: str
    tier: str
    stages: Mapping[str, float] = MappingProxyType({})
    """When each step of its create was reached, in `time.monotonic()` seconds. A tier may give none."""

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

    async def disk_use(self) -> DiskUse | None:
        """None: it has no disk of its own, is gone, or the tier does not know."""
        return None

    async def allow_disk(self, more: int | None) -> None:
        """From now on its disk gives its programs that many more bytes at most (then ENOSPC); None: all it has.

        Best effort: it may be gone.
        """
        return

    async def limit_disk(self, mib_s: int | None) -> None:
        """From now on its disk is read and written at most that fast, each; None: as fast as it can be.

        Raises SandboxGone, BackendUnavailable.
        """
        raise BackendUnavailable("this tier has no rates of disks")

    def on_oom(self, callback: Callable[[OomKill], None]) -> None:
        """`callback` is called on the event loop, once for each process that is killed because memory ran out.

        A tier that cannot identify processes never calls it.
        """
        return

    @abstractmethod
    async def update(self, limits: Limits) -> None:
        """New limits, at once; the caller writes `record` down.

        Raises SandboxGone, BackendUnavailable where the tier cannot enforce one of them.
        """

    @abstractmethod
    async def freeze(self) -> None:
        """Stops every process where it stands. Idempotent. Raises SandboxGone, BackendUnavailable (no FREEZE)."""

    @abstractmethod
    async def thaw(self) -> None:
        """Lets them go on. Idempotent. Raises SandboxGone."""

    async def pause(self, mode: PauseMode) -> Mapping[str, Any]:
        """Stops it, so that its directory holds it: all that its programs wrote is on the machine's disk.

        FILESYSTEM: its processes have ended. MEMORY: they stand still (frozen), or are in files of its directory
        (MEMORY_ON_DISK). Returns the record from which `resume`, `kept` and `end_paused` find it again. The handle is
        used up then: it owns nothing any more, its methods raise SandboxGone, `wait` returns or was cancelled before.
        The caller has cut the sandbox's connections and does not cancel this call.

        Raises SandboxGone; NotOffered without PAUSE or PAUSE_MEMORY; PlatformError: it runs on as before.
        """
        raise NotOffered(f"the tier {self.tier!r} cannot pause a sandbox")

    async def snapshot(self, mode: PauseMode, target: Path, *, durable: bool = True) -> Captured:
        """Copies what it is now into `target`, an empty directory on the file system of the sandboxes. It goes on.

        It may stand still meanwhile. The copy is of one moment, and with `durable` on the machine's disk when this
        returns. What of it is left in `target` after a failure is the caller's to remove.

        Raises SandboxGone; NotOffered without SNAPSHOT or SNAPSHOT_MEMORY; PlatformError (disk full): it runs on.
        """
        raise NotOffered(f"the tier {self.tier!r} cannot copy a sandbox that runs")

    @abstractmethod
    async def wait(self) -> ExitReport:
        """Returns once the sandbox has ended, however it ended. May be awaited by many; cancel-safe."""

    async def stop(self) -> None:
        """Ends all its processes; `kill` frees the rest. A tier for which they are one does both."""
        await self.kill()

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

        With `paths.memory` (SNAPSHOT_MEMORY) the processes of that snapshot go on in it, but with `spec`'s identity:
        id, host name, tokens, environment, clock and fresh randomness are its own.

        Before anything of a user's can run, what `adopt` needs is in its directory (`isolation.directory.begin`): for
        the server that comes after this one was killed. Raises CreateFailed.
        """

    @abstractmethod
    async def adopt(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any]) -> SandboxHandle:
        """A handle for a sandbox that an earlier server made, by its `record`. One that was frozen still is.

        Raises SandboxGone if it is no more.
        """

    async def settle_disks(self, state_dirs: Sequence[Path]) -> None:
        """Before any of these is adopted, resumed or freed: lets go on what a node that was killed had stopped.

        A disk that was being copied stands still until then, and with it each process that writes to it.
        """
        return

    async def resume(
        self, spec: SandboxSpec, paths: SandboxPaths, record: Mapping[str, Any], mode: PauseMode
    ) -> SandboxHandle:
        """Makes a paused sandbox run again from what is in its directory, on the layers that it was made on.

        `record` is what `pause` returned. MEMORY: its processes go on where they stood. FILESYSTEM: a new guest starts
        on its disk, whatever memory was kept (which is gone with that). Before anything of a user's can run, the
        directory's record names the new process (`isolation.directory.begin`), as in `create`.

        Raises NotOffered without PAUSE; MemoryLost (MEMORY is not there any more: FILESYSTEM can be tried);
        CreateFailed: no process of this attempt is left, and it is paused as before, or at least its disk is whole.
        """
        raise NotOffered(f"the tier {self.name!r} cannot make a sandbox run again from its directory")

    def kept(self, state_dir: Path, record: Mapping[str, Any]) -> PauseMode | None:
        """How a sandbox that does not run could be resumed from its directory. Reads files only.

        `record` is of `pause`, or of a sandbox whose processes have ended, or the machine with them, while it was being
        paused or resumed. None: what its programs wrote may not all be there.
        """
        return None

    async def end_paused(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any]) -> None:
        """Ends the processes that a paused sandbox still has, if any. Idempotent. Raises PlatformError."""
        with contextlib.suppress(SandboxGone):
            await (await self.adopt(spec, state_dir, record)).kill()

    async def keep_written(self, state_dir: Path, target: Path) -> Captured:
        """What a sandbox that was killed has written goes from its directory to the empty directory `target`.

        A layer for others, on the machine's disk when this returns, without what belonged to that one sandbox (its
        name, its addresses). Raises NotOffered, OSError.
        """
        raise NotOffered(f"the tier {self.name!r} cannot keep what a sandbox has written")

    async def copy_written(self, state_dir: Path, target: Path) -> None:
        """As `keep_written`, but copied, as the tree that it is on disk, into `target` itself. Raises as it."""
        raise NotOffered(f"the tier {self.name!r} cannot keep what a sandbox has written")

    async def fold(self, layers: Sequence[Path], below: Sequence[Path], target: Path) -> Captured:
        """One layer in the empty directory `target` that means on `below` what `layers` do; both top first.

        On the machine's disk when this returns; it may take long, and nobody waits meanwhile. Raises NotOffered,
        OSError: what is left in `target` is the caller's to remove.
        """
        raise NotOffered(f"the tier {self.name!r} folds no layers")

    @abstractmethod
    async def reclaim(self, spare: Set[str]) -> ReclaimReport:
        """Ends and frees everything that was ever made under its run dir, but for what it has adopted.

        `spare` names groups (`record()["group"]`) that stay too. Called once at start, after `adopt`, before `create`.
        """
