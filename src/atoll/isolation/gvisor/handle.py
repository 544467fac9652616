"""One live gVisor sandbox: the sentry (by pidfd), its cgroup, the guest's socket; its life is that of LinuxSandbox.

The sentry is the sandbox: whatever runs inside is its memory and its threads. The gofer and the stubs beside it hold
nothing that outlives it but themselves, and are found by the cgroup.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atoll.isolation.base import CONTROL_PORT, GUEST_SOCKET, PREAMBLE, EgressSockets
from atoll.isolation.gvisor import control, start
from atoll.isolation.gvisor.addresses import EGRESS_DNS_PORT, EGRESS_TCP_PORT
from atoll.isolation.linux import guest_socket
from atoll.isolation.linux.cgroups import Cgroups, Usage
from atoll.isolation.linux.network_thread import NetworkThread
from atoll.isolation.linux.run_records import RunRecords
from atoll.isolation.linux.sandbox import LinuxSandbox
from atoll.model.errors import BackendUnavailable, PlatformError, PortClosed, SandboxGone
from atoll.model.sandbox import ENVD_PORT, INTERPRETER_PORT, Limits

_GUEST_PORTS = frozenset({CONTROL_PORT, ENVD_PORT, INTERPRETER_PORT})
_RELAY_WITHIN_S = 10.0
_GOFER = b"runsc-gofer\0"
_EGRESS_BACKLOG = 4096


class GvisorHandle(LinuxSandbox):
    """See SandboxHandle. Made by the backend only; owns `pidfd`."""

    tier = "gvisor"
    enforced = frozenset({"memory", "cpu"})
    heart = "its kernel (the sentry)"

    def __init__(
        self,
        record: Mapping[str, Any],
        pidfd: int,
        records: RunRecords,
        cgroups: Cgroups,
        on_end: Callable[[GvisorHandle], None],
        network: NetworkThread | None,
    ) -> None:
        super().__init__(record, pidfd, records, cgroups, on_end)
        self.id_base = int(record["id_base"])
        self.egress: EgressSockets | None = None
        """The way out until it is fetched."""
        self._network = network

    # -- traffic -------------------------------------------------------------------------------------------------------

    async def egress_sockets(self) -> EgressSockets | None:
        """See SandboxHandle. Those made before any user code ran; for a later server new ones."""
        if self._network is None or not self._record.get("network"):
            return None
        self._check_alive()
        ready, self.egress = self.egress, None
        if ready is not None:
            return ready
        pidfd = os.dup(self._pidfd)  # the sandbox may end, and its number be used again, while a thread works
        try:
            return await open_egress(self._network, pidfd)
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"the way out of sandbox {self.sandbox_id!r} cannot be made: {error}") from error
        finally:
            os.close(pidfd)

    async def dial(self, port: int) -> socket.socket:
        """See SandboxHandle. Ports of the sandbox's programs are relayed by the guest."""
        self._check_alive()
        try:
            connection = await guest_socket.connect(self._state_dir / GUEST_SOCKET, PREAMBLE.format(port=port).encode())
        except OSError as error:
            raise SandboxGone(self.sandbox_id, "its guest does not answer") from error
        if port in _GUEST_PORTS:
            return connection
        try:
            answer = await asyncio.wait_for(self._loop.sock_recv(connection, 1), _RELAY_WITHIN_S)
        except (OSError, TimeoutError) as error:
            connection.close()
            self._check_alive()
            raise PlatformError(f"cannot reach port {port} of sandbox {self.sandbox_id!r}: {error}") from error
        except BaseException:
            connection.close()
            raise
        if answer != b"\0":
            connection.close()
            self._check_alive()
            raise PortClosed(self.sandbox_id, port)
        return connection

    # -- limits --------------------------------------------------------------------------------------------------------

    def _disk_used(self) -> int | None:
        if not self._record.get("disk_mib"):
            return super()._disk_used()
        for pid in self._group.processes():
            # The gofer has made the sandbox's root its own; the sentry and its stubs have an empty one.
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_GOFER):
                    found = os.statvfs(f"/proc/{pid}/root")
                    return (found.f_blocks - found.f_bfree) * found.f_frsize
        return None

    async def _processes(self, usage: Usage) -> int | None:
        """Counted by the sandbox's own kernel: the host sees the sentry's threads only."""
        if self._frozen:
            return None
        try:
            told = await control.request(self._state_dir / GUEST_SOCKET, "GET", "/quota")
        except (OSError, ValueError, TimeoutError):
            self._check_alive()
            return None
        pids = told.get("pids")
        return pids if isinstance(pids, int) else None

    async def _apply(self, limits: Limits) -> None:
        if (held := self._record.get("disk_mib")) and limits.disk_mib != held:
            raise BackendUnavailable(
                f"the disk of sandbox {self.sandbox_id!r} has {held} MiB and keeps them",
                hint="choose its size when it is made",
            )
        if limits.pids != self._limits.pids:
            await control.request(self._state_dir / GUEST_SOCKET, "POST", "/quota", {"pids": limits.pids})
        await asyncio.to_thread(self._group.limit, start.host_limits(limits))

    async def checkpoint(self, directory: Path) -> None:
        """See SandboxHandle: not offered yet."""
        raise BackendUnavailable(
            "the gvisor tier does not write checkpoints of memory yet", hint="freeze keeps it in memory meanwhile"
        )

    # -- the end -------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        if self.egress is not None:
            self.egress.connections.close()
            self.egress.questions.close()
            self.egress = None

    async def _how_it_ended(self, oom_kills: int | None) -> str:
        if oom_kills:
            return f"it used more memory than its limit of {self._limits.memory_mib} MiB and was ended by the kernel"
        return f"its first process or {self.heart} ended"

    async def _empty_group(self) -> bool:
        return await start.end_group(self._group)


async def open_egress(network: NetworkThread, pidfd: int) -> EgressSockets:
    """Both ends of the way out, in the network namespace of that process. Raises OSError."""
    made: list[socket.socket] = []
    try:
        for kind, port in ((socket.SOCK_STREAM, EGRESS_TCP_PORT), (socket.SOCK_DGRAM, EGRESS_DNS_PORT)):
            made.append(await network.socket_in(pidfd, socket.AF_INET, kind))
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(kind == socket.SOCK_STREAM))
            # Bound to loopback: only then are answers translated back.
            made[-1].bind(("127.0.0.1", port))
        made[0].listen(_EGRESS_BACKLOG)
    except BaseException:
        for one in made:
            one.close()
        raise
    return EgressSockets(made[0], made[1])
