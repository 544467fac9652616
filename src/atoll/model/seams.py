"""The seams between control, node and edge, as protocols.

Implementations never import one another; `atoll.server` joins them.

control ──NodeClient──► node ──IsolationBackend──► sandbox
   ▲                     │
   └────NodeEvents, NodePresence
edge ──RouteTable──► (the front's table, fed by node events)
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from atoll.model.logs import LogEntry
from atoll.model.network import NetworkConnection, NetworkPolicy
from atoll.model.node_addresses import NodeAddress
from atoll.model.sandbox import EndReason, Limits, OomKill, PauseMode, SandboxSpec, SandboxStats
from atoll.model.template import Template


@dataclass(frozen=True, slots=True)
class NodePause:
    """A paused sandbox: what is kept of it, whether its guest answered before, whether it takes memory meanwhile.

    `size`: bytes of the disk that its own disk and what was in its memory take.
    """

    mode: PauseMode
    guest_answered: bool = True
    holds_memory: bool = False
    size: int = 0


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """What a snapshot keeps, of which tier, and what sandboxes of it start with."""

    mode: PauseMode
    tier: str
    env_vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    default_user: str = "user"
    default_workdir: str | None = None
    start_cmd: str | None = None
    interpreter: bool = False
    gpu: str | None = None
    no_new_privileges: bool = False


@dataclass(frozen=True, slots=True)
class NodeSandbox:
    """What a node reports of a sandbox that it has. `steps_ms`: how long each step of its create took, where known."""

    sandbox_id: str
    tier: str
    steps_ms: Mapping[str, float] = field(default_factory=dict)
    paused: NodePause | None = None
    """None: it runs."""
    generation: int = 1
    """`SandboxSpec.generation`."""


@dataclass(frozen=True, slots=True)
class NodeMachine:
    """The machine of a node, and what is used of it by all together. `disk`: the file system of its data directory."""

    version: str
    """Of Atoll there."""
    architecture: str
    processor: str
    """Its model, for people."""
    cpu_count: int
    cpu_used_pct: float
    """Of all processors together: at most 100."""
    memory_mib: int
    memory_used_mib: int
    disk_mib: int
    disk_used_mib: int


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node reports of itself when it registers, and with each heartbeat.

    `load`: load average per processor. `memory`: the share of its memory that is in use, 0 to 1. `total`: what the
    limits of its sandboxes may add up to; None: not reported. `at`: when that was, by a clock of its own (`renew`).
    `gpus`: how many of its GPUs could be given to one more sandbox.
    """

    sandboxes: int
    draining: bool = False
    load: float = 0.0
    memory: float = 0.0
    total: Limits | None = None
    machine: NodeMachine | None = None
    """None: of a node that does not report it."""
    at: float = 0.0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class NodeImage:
    """An image that sandboxes of a node have made: what it adds to those that it stands on, in bytes on the disk."""

    image_id: str
    size: int
    layers: int
    has_memory: bool
    stands_on: tuple[str, ...] = ()
    """The images whose layers are among its own."""


class NodeClient(Protocol):
    """What control may ask of a node. Spoken over `wire.node` always: nothing here shares memory or disk."""

    @property
    def node_id(self) -> str: ...

    async def create(self, request: SandboxSpec) -> NodeSandbox:
        """Starts a sandbox; returns when its guest's socket accepts. Cancelled, or asked for by a process that ended
        meanwhile, it is undone.

        Raises TemplateNotFound, CreateFailed (everything undone), BackendUnavailable.
        """
        ...

    async def assign(self, spec: SandboxSpec) -> NodeSandbox:
        """A sandbox that runs becomes the one of `spec`, under its own id: environment, tokens, network.

        What runs in it goes on, with the environment that it has. `spec` differs in nothing else from what it was made
        of. Raises SandboxGone, PlatformError (its guest does not answer).
        """
        ...

    async def kill(self, sandbox_id: str, reason: EndReason) -> bool:
        """Ends it and frees all it had. True if it was alive; False if unknown. Idempotent, bounded in time."""
        ...

    async def pause(self, sandbox_id: str, mode: PauseMode, need_answer: bool) -> NodePause:
        """Stops it, with its connections cut; what it wrote is on the disk when this returns.

        `need_answer`: only where its guest answers. A caller that goes away does not stop it.

        Raises SandboxGone, Conflict (it does not run), NotOffered, GuestUnresponsive, PlatformError; it runs on then.
        """
        ...

    async def resume(self, sandbox_id: str, mode: PauseMode, network: NetworkPolicy) -> NodeSandbox:
        """Lets a paused one run again; as `create`, but a caller that goes away does not stop it.

        `network`: what it may reach from its first moment on; what its rules add may have changed while it was paused.

        FILESYSTEM starts a new guest on its disk, whatever was kept. Raises SandboxGone, Conflict (it is not paused),
        MemoryLost (it is paused with its disk alone from now on), CreateFailed (it stays paused).
        """
        ...

    async def renew(self, lease_s: float, since: float) -> None:
        """Control still counts on all that runs there, for `lease_s` from `since`: `NodeStatus.at` of its last word.

        A node on another machine lets what it runs stand still when this is over, until it is renewed: by then a
        sandbox of it may have been begun anew elsewhere. Control has ended those there before it renews.
        """
        ...

    async def stats(self, sandbox_id: str) -> SandboxStats:
        """One reading from the host's side. Raises SandboxGone."""
        ...

    async def flush_logs(self, sandbox_id: str) -> None:
        """What the sandbox has logged so far reaches NodeEvents before this returns. Bounded in time; never raises."""
        ...

    def unenforced(self, tier: str) -> Sequence[str]:
        """Of cpu, memory, pids and disk those whose limits sandboxes of that tier do not keep on this node."""
        ...

    async def update_network(self, sandbox_id: str, network: NetworkPolicy) -> None:
        """Replaces what it may reach, at once; open connections that it forbids are cut.

        Raises SandboxGone, NotOffered (its tier has no way out that could follow a policy).
        """
        ...

    async def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """What left it or tried to, oldest first, as far back as the node remembers. Raises SandboxGone."""
        ...

    async def sandboxes(self) -> Sequence[NodeSandbox]:
        """All that run on this node now or are paused there."""
        ...

    async def make_template(self, name: str, wait_s: float) -> None:
        """Makes the built-in template `name` where it is missing; returns when it is there.

        Cancelling gives up the waiting, not the work. Raises TemplateNotFound (nothing to make it of),
        TemplateNotReady after `wait_s`, BuildFailed.
        """
        ...

    async def commit(self, sandbox_id: str, image_id: str) -> None:
        """Ends the sandbox, and keeps what it has written as the image `image_id`, on top of what it stood on.

        Raises SandboxGone, NotOffered (its tier cannot), PlatformError; the sandbox is gone in any case.
        """
        ...

    async def commit_layers(
        self, sandbox_id: str, directory: str, first: int, below: str | None, image_ids: Sequence[str]
    ) -> None:
        """Ends the sandbox, and keeps the directories `first`, `first` + 1, … of `directory` in it as images.

        Each stands on the one before, the first on the image `below`; None: on nothing. What one deletes is marked
        there as in an OCI layer's archive. Raises as `commit`, TemplateNotFound (`below`).
        """
        ...

    async def snapshot(self, sandbox_id: str, image_id: str, mode: PauseMode | None, *, durable: bool) -> NodeSnapshot:
        """Keeps what it is now as the image `image_id`; it goes on. `mode` None: as much as its tier can.

        `durable`: it is on the machine's disk when this returns; else once something durable stands on it.

        Raises SandboxGone, Conflict (it is paused), NotOffered, PlatformError; it runs on in any case.
        """
        ...

    async def has_image(self, image_id: str) -> bool:
        """Whether a create may name it (`SandboxSpec.image_id`)."""
        ...

    async def share_image(self, image_id: str) -> None:
        """Any node with the same object store may be asked for it from now on. Takes as long as a copy of it does.

        Raises NotOffered (the node has no store), TemplateNotFound, PlatformError.
        """
        ...

    async def images(self) -> Sequence[NodeImage]:
        """All that it has."""
        ...

    async def keep_images(self, image_ids: Sequence[str]) -> int:
        """Frees all other images that no sandbox stands on and that are not new; returns how many."""
        ...

    async def create_volume(self, volume_id: str, size_mib: int, token_digest: str) -> None:
        """Makes an empty volume, which sandboxes may name from now on, and opens the way to its contents.

        `token_digest`: SHA-256, as hex, of the token that its contents are reached with. One that is there already
        stays. Raises NotOffered (this machine cannot have any), QuotaExceeded (no room), PlatformError.
        """
        ...

    async def remove_volume(self, volume_id: str) -> None:
        """With its contents. Idempotent. Raises Conflict (a sandbox has it mounted, or would have when it is resumed),
        PlatformError."""
        ...

    async def templates(self) -> Sequence[Template]:
        """All that a create may name."""
        ...


class NodeEvents(Protocol):
    """What a node reports to control without being asked."""

    async def sandbox_ended(self, sandbox_id: str, reason: EndReason, detail: str) -> None:
        """A sandbox ended by itself (its guest died). Not called for a kill that control asked for."""
        ...

    async def sandbox_out_of_memory(self, sandbox_id: str, victim: OomKill) -> None:
        """The kernel ended one of its processes because its memory was used up; the sandbox lives on."""
        ...

    async def sandbox_logged(self, sandbox_id: str, entries: Sequence[LogEntry]) -> None:
        """New entries of its log, by number. After a restart of the server some come a second time."""
        ...


class NodePresence(Protocol):
    """Gets that a node is there, how it is, and that it is not there any more. All calls are synchronous."""

    def registered(self, node: NodeClient, status: NodeStatus) -> None:
        """A connection to it was made, the first or another: what both sides know may differ now."""
        ...

    def beat(self, node_id: str, status: NodeStatus) -> None:
        """It lives. Called about once a second while it does."""
        ...

    def lost(self, node_id: str) -> None:
        """Its connection has ended. It is being connected to again."""
        ...


class NodeLinks(Protocol):
    """The connections to nodes on other machines, while the server runs."""

    async def connect(self, address: NodeAddress) -> None:
        """Begins one, in place of an earlier one to the node of that id; the node registers whenever it is there."""
        ...

    async def disconnect(self, node_id: str) -> None:
        """Ends one, with the routes to its sandboxes; the node goes on. Idempotent."""
        ...


Dial = Callable[[int], Awaitable[socket.socket]]
"""port → a connected, non-blocking stream socket to that port in the sandbox.

Raises PortClosed, SandboxGone. The caller owns the socket.
"""


@dataclass(frozen=True, slots=True)
class Route:
    """All that the edge knows of a live sandbox."""

    sandbox_id: str
    dial: Dial
    envd_access_token: str | None = field(default=None, repr=False)
    """For finding the sandbox of a signed URL that carries no id; None: the sandbox is not secure."""
    traffic_access_token: str | None = field(default=None, repr=False)
    """When set, traffic to user ports must carry it in `e2b-traffic-access-token`."""
    mask_request_host: str | None = None


Spend = Callable[[str, int], float]
"""(sandbox id, bytes): so much of its output has come. Returns for how many seconds no more of it should be read."""


class RouteSink(Protocol):
    """Gets every sandbox that can be reached from now on, and every one that no longer can."""

    def add(self, route: Route) -> None:
        """Opens the way to a sandbox; replaces what was known of it."""
        ...

    def remove(self, sandbox_id: str) -> None:
        """Closes it. Idempotent."""
        ...


class RouteTable(Protocol):
    """Sandbox id → where to dial. The edge knows nothing else. All calls are synchronous look-ups in memory."""

    def find(self, sandbox_id: str) -> Route | None:
        """None: the edge answers "The sandbox was not found"."""
        ...

    def routes(self) -> Sequence[Route]:
        """Every live route (for signed URLs without an id)."""
        ...
