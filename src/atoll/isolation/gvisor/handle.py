"""One live gVisor sandbox: the sentry (by pidfd), its cgroup, the guest's socket; its life is that of LinuxSandbox.

The sentry is the sandbox: whatever runs inside is its memory and its threads. The gofer and the stubs beside it hold
nothing that outlives it but themselves, and are found by the cgroup.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from atoll.isolation.base import GUEST_SOCKET, EgressSockets
from atoll.isolation.gvisor import start
from atoll.isolation.gvisor.addresses import EGRESS_DNS_PORT, EGRESS_TCP_PORT, GATEWAY
from atoll.isolation.gvisor.launch import HELD
from atoll.isolation.gvisor.relief import RESERVE, Relief
from atoll.isolation.linux.cgroups.full_memory import FullMemory
from atoll.isolation.linux.cgroups.groups import Cgroups, Usage
from atoll.isolation.linux.net import control, guest_socket, held_sockets
from atoll.isolation.linux.process_identity import open_recorded
from atoll.isolation.linux.sandbox import LinuxSandbox
from atoll.model.errors import PlatformError, PortClosed, SandboxGone
from atoll.model.sandbox import Limits, SandboxSpec

_GOFER = b"runsc-gofer\0"


class GvisorHandle(LinuxSandbox):
    """See SandboxHandle. Made by the backend only; owns `pidfd`."""

    tier = "gvisor"
    enforced = frozenset({"memory", "cpu"})
    init_process = "its kernel (the sentry)"

    def __init__(
        self,
        spec: SandboxSpec,
        state_dir: Path,
        record: Mapping[str, Any],
        pidfd: int,
        cgroups: Cgroups,
        on_end: Callable[[GvisorHandle], None],
    ) -> None:
        super().__init__(spec, state_dir, record, pidfd, cgroups, on_end)
        self.id_base = int(record["id_base"])
        self._relief: Relief | None = None
        self._watching = self._loop.create_task(self._watch_memory())

    # -- traffic -------------------------------------------------------------------------------------------------------

    async def egress_sockets(self) -> EgressSockets | None:
        """See SandboxHandle. Copies of what a process outside gVisor has held since before any user code ran."""
        held = self._record.get("egress")
        if not held:
            return None
        self._check_alive()
        try:
            if (pidfd := open_recorded(held)) is None:
                raise OSError("who held it has ended")
            try:
                return held_sockets.fetch(pidfd, HELD, EGRESS_TCP_PORT, EGRESS_DNS_PORT, GATEWAY)
            finally:
                os.close(pidfd)
        except (OSError, KeyError, TypeError, ValueError) as error:
            self._check_alive()
            raise PlatformError(f"the way out of sandbox {self.sandbox_id!r} cannot be taken over: {error}") from error

    async def dial(self, port: int) -> socket.socket:
        """See SandboxHandle. Ports of the sandbox's programs are relayed by the guest."""
        self._check_alive()
        try:
            connection = await guest_socket.connect_guest(self._state_dir / GUEST_SOCKET, port)
        except OSError as error:
            raise SandboxGone(self.sandbox_id, "its guest does not answer") from error
        if port in guest_socket.GUEST_PORTS:
            return connection
        try:
            is_open = await guest_socket.is_relayed(connection)
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"cannot reach port {port} of sandbox {self.sandbox_id!r}: {error}") from error
        if not is_open:
            self._check_alive()
            raise PortClosed(self.sandbox_id, port)
        return connection

    # -- limits --------------------------------------------------------------------------------------------------------

    async def _watch_memory(self) -> None:
        """Beside the create: for each threshold the kernel takes 10 to 20 ms."""
        limit = start.host_limits(self._limits).memory_mib << 20
        try:
            full = await asyncio.to_thread(FullMemory, self._group, limit, RESERVE)
        except OSError:  # no memory controller: there is no limit either; or the sandbox has ended
            return
        if self._dead.is_set():
            full.close()
        else:
            self._relief = Relief(full, self._state_dir, self._say_oom)

    def _inside(self) -> Iterator[int]:
        for pid in self._group.processes():
            # The gofer has made the sandbox's root its own; the sentry and its stubs have an empty one.
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(_GOFER):
                    yield pid

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
        if limits.pids != self._limits.pids:
            await control.request(self._state_dir / GUEST_SOCKET, "POST", "/quota", {"pids": limits.pids})
        on_host = start.host_limits(limits)
        await asyncio.to_thread(self._group.limit, on_host)
        await asyncio.shield(self._watching)
        if self._relief is not None:
            await asyncio.to_thread(self._relief.limit, on_host.memory_mib << 20)

    # -- the end -------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        if self._relief is not None:
            self._relief.close()
            self._relief = None

    async def _how_it_ended(self, oom_kills: int | None) -> str:
        if oom_kills:
            return (
                f"it used more memory than its limit of {self._limits.memory_mib} MiB, and no process could be ended "
                "instead of it"
            )
        return f"its first process or {self.init_process} ended"

    async def _empty_group(self) -> bool:
        return await start.end_group(self._group)
