"""One live sandbox of this tier: its first process, its cgroup, its socket; its life is that of every LinuxSandbox.

The end is noticed by the pidfd, which becomes readable when the first process is dead; with it dies, by the kernel's
hand and before that moment, everything else in its pid namespace; its network follows. Its mounts would go before that
moment too, which somebody waits for: a kill holds them until it has been answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from atoll.isolation.base import GUEST_SOCKET, Captured, EgressSockets
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.disk.layers import SUFFIX
from atoll.isolation.linux.net import guest_socket, held_sockets
from atoll.isolation.linux.net.guest_socket import GUEST_PORTS, connect_guest
from atoll.isolation.linux.net.network_thread import NetworkThread
from atoll.isolation.linux.process_identity import has_ended
from atoll.isolation.linux.sandbox import LinuxSandbox
from atoll.isolation.namespaces.dial import connect_port
from atoll.isolation.namespaces.disk_files import DiskFiles
from atoll.isolation.namespaces.posture import EGRESS_DNS_PORT, EGRESS_TCP_PORT, processes_of_a_user
from atoll.model.durable import sync
from atoll.model.errors import NotOffered, PlatformError, PortClosed, SandboxGone
from atoll.model.sandbox import Limits, PauseMode, SandboxSpec

_RELEASE_WITHIN_S = 2.5
_STATUS_GRACE_S = 0.05
_UNMOUNTING = ThreadPoolExecutor(2, thread_name_prefix="atoll-unmount")
"""Apart from the threads that others wait for: a disk is written out, and may hang."""


class NamespacesHandle(LinuxSandbox):
    """See SandboxHandle. Made by the backend only; owns `pidfd`."""

    tier = "namespaces"
    enforced = frozenset({"memory", "pids", "cpu"})
    init_process = "its first process"

    def __init__(
        self,
        spec: SandboxSpec,
        state_dir: Path,
        record: Mapping[str, Any],
        pidfd: int,
        cgroups: Cgroups,
        on_end: Callable[[NamespacesHandle], None],
        network: NetworkThread | None,
    ) -> None:
        super().__init__(spec, state_dir, record, pidfd, cgroups, on_end)
        self.id_base = int(record["id_base"])
        self.status: int | None = None
        """The first process's wait status, if the zygote knew it."""
        self._network = network
        """None: the server may not enter the sandbox's network (rootless), its guest relays."""
        self._disk_files = DiskFiles(state_dir, has_image=bool(record.get("disk_mib")))
        self.egress: EgressSockets | None = None
        """The way out, where it was handed over at the create, until it is fetched."""
        self._has_volumes = bool(spec.volumes)
        self._mounts: int | None = None
        """Its mount namespace, while it is being killed."""

    # -- traffic -------------------------------------------------------------------------------------------------------

    async def dial(self, port: int) -> socket.socket:
        """See SandboxHandle."""
        self._check_alive()
        try:
            if port in GUEST_PORTS:
                return await connect_guest(self._state_dir / GUEST_SOCKET, port)
            if self._network is None:
                return await self._dial_relayed(port)
            pidfd = os.dup(self._pidfd)  # the sandbox may end, and its number be used again, while a thread works
            try:
                connection = await connect_port(self._network, pidfd, port)
            finally:
                os.close(pidfd)
        except OSError as error:
            self._check_alive()
            if isinstance(error, ProcessLookupError) or port in GUEST_PORTS:
                raise SandboxGone(self.sandbox_id, "its guest does not answer") from error
            raise PlatformError(f"cannot reach port {port} of sandbox {self.sandbox_id!r}: {error}") from error
        if connection is None:
            self._check_alive()
            raise PortClosed(self.sandbox_id, port)
        return connection

    async def _dial_relayed(self, port: int) -> socket.socket:
        connection = await connect_guest(self._state_dir / GUEST_SOCKET, port)
        if not await guest_socket.is_relayed(connection):
            self._check_alive()
            raise PortClosed(self.sandbox_id, port)
        return connection

    async def egress_sockets(self) -> EgressSockets | None:
        """See SandboxHandle."""
        self._check_alive()
        ready, self.egress = self.egress, None
        if ready is not None:
            return ready
        held = self._record.get("egress")
        if not held:
            return None
        try:
            return held_sockets.fetch(self._pidfd, held, EGRESS_TCP_PORT, EGRESS_DNS_PORT)
        except (OSError, ValueError) as error:
            self._check_alive()
            raise PlatformError(f"the way out of sandbox {self.sandbox_id!r} cannot be taken over: {error}") from error

    def _inside(self) -> tuple[int]:
        return (self.pid,)

    async def _apply(self, limits: Limits) -> None:
        self._group.limit(limits)
        if limits.cpu_count != self._limits.cpu_count:
            await asyncio.to_thread(self._move, limits.cpu_count)
        most_each = processes_of_a_user(limits.pids)
        with contextlib.suppress(OSError):  # it may have ended
            resource.prlimit(self.pid, resource.RLIMIT_NPROC, (most_each, most_each))

    def _move(self, count: int) -> None:
        """All that runs goes to so many processors: some of those that it had, or others with them."""
        had, usable = self._record.get("processors") or [], sorted(os.sched_getaffinity(0))
        others = random.sample(usable, len(usable))
        chosen = list(dict.fromkeys([*(one for one in had if one in usable), *others]))[:count]
        self._record["processors"] = sorted(chosen)
        for _ in range(2):  # some are born meanwhile
            for pid in self._group.processes() - {self.pid}:
                with contextlib.suppress(OSError):
                    for thread in os.listdir(f"/proc/{pid}/task"):
                        os.sched_setaffinity(int(thread), chosen)

    def _close(self) -> None:
        if self.egress is not None:
            self.egress.connections.close()
            self.egress.questions.close()
            self.egress = None

    # -- kept ----------------------------------------------------------------------------------------------------------

    async def pause(self, mode: PauseMode) -> Mapping[str, Any]:
        """See SandboxHandle. With memory its processes stay, frozen; they take memory, but no processor time."""
        self._check_alive()
        if mode is PauseMode.MEMORY and not self._can_freeze:
            raise NotOffered(f"the tier {self.tier!r} cannot pause with memory: this machine has no usable freezer")
        try:
            await asyncio.to_thread(self._disk_files.flush, ahead=True)
            if self._can_freeze:
                await self.freeze()
            try:
                await asyncio.to_thread(self._disk_files.flush)
            except BaseException:
                if self._can_freeze:
                    await self.thaw()
                raise
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be paused: {error}") from error
        if mode is PauseMode.FILESYSTEM:
            await self._end_kept(self._disk_files.settle)
        else:
            self.detach()
            self._on_end(self)
        return {**self._record, "flushed": True, "frozen": mode is PauseMode.MEMORY}

    def forget_pause(self) -> None:
        """It was adopted while frozen, and is to go on."""
        self._frozen = True
        self._record = {name: value for name, value in self._record.items() if name not in ("flushed", "frozen")}

    async def snapshot(self, mode: PauseMode, target: Path, *, durable: bool = True) -> Captured:
        """See SandboxHandle. It stands still while the written parts of its disk are copied."""
        self._check_alive()
        if mode is PauseMode.MEMORY:
            raise NotOffered(
                f"a snapshot in the tier {self.tier!r} holds the disk, not what runs", hint='ask for mode="filesystem"'
            )
        if not self._record.get("disk_mib"):
            raise NotOffered(f"the tier {self.tier!r} makes no snapshots without disks of its own; see `atoll doctor`")
        layer = target / f"layer{SUFFIX}"
        try:
            await asyncio.to_thread(self._disk_files.flush, ahead=True)
            was_frozen = self._frozen
            if self._can_freeze and not was_frozen:
                await self.freeze()
            thaws = self._thaws
            try:
                await asyncio.to_thread(self._disk_files.copy, layer, frozen=self._can_freeze)
                if self._thaws != thaws:  # somebody had it go on, or ends it: the copy may be of several moments
                    self._check_alive()
                    layer.unlink()
                    await asyncio.to_thread(self._disk_files.copy, layer, frozen=False)
            finally:
                if self._can_freeze and not was_frozen and not self._dead.is_set():
                    await self.thaw()
            if durable:
                await asyncio.to_thread(sync, layer)
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be copied: {error}") from error
        return Captured(layer)

    # -- the end -------------------------------------------------------------------------------------------------------

    async def _how_it_ended(self, oom_kills: int | None) -> str:
        if self.status is None:
            await asyncio.sleep(_STATUS_GRACE_S)  # the zygote's word may be on its way
        if self.status is None:
            how = f"{self.init_process} ended"
        elif os.WIFSIGNALED(self.status):
            how = f"{self.init_process} was ended by signal {signal.Signals(os.WTERMSIG(self.status)).name}"
        else:
            how = f"{self.init_process} exited with {os.waitstatus_to_exitcode(self.status)}"
        return f"{how}; the kernel had killed {oom_kills} processes because memory ran out" if oom_kills else how

    async def stop(self) -> None:
        """See SandboxHandle. All its processes are in the pid namespace of the first, and have ended before it."""
        await self._end_init()

    async def _end_init(self) -> None:
        self._hold_mounts()
        try:
            await super()._end_init()
        except BaseException:
            self._let_go_of_mounts()
            raise

    def _hold_mounts(self) -> None:
        """Unmounting writes a disk out and waits for all processors: not before the first process counts as dead.

        Volumes have to be free when it is answered: the next call may mount or remove them.
        """
        if self._mounts is not None or self._has_volumes or self._dead.is_set():
            return
        with contextlib.suppress(OSError):  # rootless: they go with its first process
            self._mounts = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        if has_ended(self._pidfd):  # the number may be another's by now
            self._let_go_of_mounts()

    def _let_go_of_mounts(self) -> asyncio.Future[None] | None:
        """Done when what is mounted nowhere else is gone; None: nothing was held."""
        held, self._mounts = self._mounts, None
        return None if held is None else self._loop.run_in_executor(_UNMOUNTING, os.close, held)

    async def _release(self) -> None:
        if (gone := self._let_go_of_mounts()) is not None:
            await gone
        await super()._release()

    async def _empty_group(self) -> bool:
        deadline = self._loop.time() + _RELEASE_WITHIN_S
        # Half a millisecond of the kernel's for each hierarchy: not in the event loop.
        while not await asyncio.to_thread(self._group.try_remove):
            if self._loop.time() > deadline:
                return False
            await asyncio.sleep(0.002)
        return True
