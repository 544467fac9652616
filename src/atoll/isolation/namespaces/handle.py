"""One live sandbox as the server sees it: its first process (by pidfd), its cgroup, its socket.

    LIVE ── kill() or the first process ends ──► releasing (cgroup, socket file, record) ──► ended

The end is noticed by the pidfd, which becomes readable when the first process is dead; with it dies, by the kernel's
hand and before that moment, everything else in its pid namespace, and mounts and network follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atoll.isolation.base import GUEST_SOCKET, EgressSockets, ExitReport, SandboxHandle
from atoll.isolation.linux import disk_usage
from atoll.isolation.linux.cgroups import Cgroups, Group
from atoll.isolation.linux.syscalls import pidfd_kill
from atoll.isolation.namespaces import egress
from atoll.isolation.namespaces.dial import GUEST_PORTS, NetworkThread, connect_guest, connect_port
from atoll.isolation.namespaces.layout import RunLayout
from atoll.isolation.namespaces.posture import processes_of_a_user
from atoll.isolation.namespaces.spec_codec import limits_from_json, limits_to_json
from atoll.model.errors import BackendUnavailable, PlatformError, PortClosed, SandboxGone
from atoll.model.sandbox import Limits, SandboxStats

_DIE_WITHIN_S = 7.0
_RELEASE_WITHIN_S = 2.5
_FREEZE_WITHIN_S = 5.0
_STATUS_GRACE_S = 0.05
_DISK_READING_LASTS_S = 10.0


class NamespacesHandle(SandboxHandle):
    """See SandboxHandle. Made by the backend only; owns `pidfd`."""

    tier = "namespaces"

    def __init__(
        self,
        record: Mapping[str, Any],
        pidfd: int,
        layout: RunLayout,
        cgroups: Cgroups,
        network: NetworkThread,
        on_end: Callable[[NamespacesHandle], None],
    ) -> None:
        self.sandbox_id = str(record["sandbox_id"])
        self.pid = int(record["pid"])
        self.stages: Mapping[str, float] = {}
        """Monotonic seconds at each step of the creation, where this server made it; for measurements."""
        self.status: int | None = None
        """The first process's wait status, when the zygote could tell it."""
        self._record = dict(record)
        self._pidfd = pidfd
        self._layout = layout
        self._group: Group = cgroups.group(record["group"])
        self._can_freeze = cgroups.can_freeze
        self._limited = cgroups.limited
        self._network = network
        self._on_end = on_end
        self._limits = limits_from_json(record["limits"])
        self._state_dir = Path(record["state_dir"])
        self._killed = False
        self._detached = False
        self._failure: str | None = None
        self._loop = asyncio.get_running_loop()
        self._dead = asyncio.Event()
        self._ended: asyncio.Future[ExitReport] = self._loop.create_future()
        self._releasing: asyncio.Task[None] | None = None
        self._cpu: tuple[float, float] | None = None
        self._disk: tuple[float, int | None] | None = None
        self._loop.add_reader(pidfd, self._first_process_ended)

    # -- traffic -------------------------------------------------------------------------------------------------------

    async def dial(self, port: int) -> socket.socket:
        """See SandboxHandle."""
        self._check_alive()
        try:
            if port in GUEST_PORTS:
                return await connect_guest(self._state_dir / GUEST_SOCKET, port)
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

    async def egress_sockets(self) -> EgressSockets | None:
        """See SandboxHandle."""
        self._check_alive()
        held = self._record.get("egress")
        if not held:
            return None
        try:
            return egress.fetch(self._pidfd, held)
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"the way out of sandbox {self.sandbox_id!r} cannot be taken over: {error}") from error

    def _check_alive(self) -> None:
        if self._dead.is_set() or _has_ended(self._pidfd):
            raise SandboxGone(self.sandbox_id, "killed" if self._killed else "its first process ended")

    # -- limits --------------------------------------------------------------------------------------------------------

    async def stats(self) -> SandboxStats:
        """See SandboxHandle. The disk figure may be some seconds old."""
        self._check_alive()
        usage = self._group.usage()
        now = time.monotonic()
        percent = None
        if usage.cpu_s is not None:
            then, used = self._cpu or (now, usage.cpu_s)
            percent = 100.0 * (usage.cpu_s - used) / (now - then) if now > then else 0.0
            self._cpu = (now, usage.cpu_s)
        if self._disk is None or now - self._disk[0] > _DISK_READING_LASTS_S:
            self._disk = (now, await asyncio.to_thread(self._disk_used))
        return SandboxStats(
            cpu_used_pct=percent,
            memory_used=usage.memory_bytes,
            memory_cache=usage.cache_bytes,
            memory_total=self._limits.memory_mib << 20,
            disk_used=self._disk[1],
            disk_total=self._limits.disk_mib << 20,
            pids=usage.pids,
        )

    def _disk_used(self) -> int | None:
        if not self._record.get("disk_mib"):
            return disk_usage.of_tree(self._state_dir / "upper")
        try:
            found = os.statvfs(f"/proc/{self.pid}/root")
        except OSError:
            return None
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    async def update(self, limits: Limits) -> None:
        """See SandboxHandle."""
        self._check_alive()
        if (held := self._record.get("disk_mib")) and limits.disk_mib != held:
            raise BackendUnavailable(
                f"the disk of sandbox {self.sandbox_id!r} has {held} MiB and keeps them",
                hint="choose its size when it is made",
            )
        missing = {"memory", "pids", "cpu"} - self._limited
        if missing:
            raise BackendUnavailable(
                f"limits of {', '.join(sorted(missing))} cannot be enforced on this machine",
                hint="no writable cgroup controller; see `atoll doctor`",
            )
        try:
            self._group.limit(limits)
        except OSError as error:
            self._check_alive()
            raise BackendUnavailable(
                f"the limits of sandbox {self.sandbox_id!r} cannot be changed: {error}",
                hint="it may use more memory now than the new limit allows",
            ) from error
        most_each = processes_of_a_user(limits.pids)
        with contextlib.suppress(OSError):  # it may have ended
            resource.prlimit(self.pid, resource.RLIMIT_NPROC, (most_each, most_each))
        self._limits = limits
        self._record["limits"] = limits_to_json(limits)
        self._layout.write_record(self._group.name, self._record)

    # -- stop and go ---------------------------------------------------------------------------------------------------

    async def freeze(self) -> None:
        """See SandboxHandle."""
        self._check_alive()
        if not self._can_freeze:
            raise BackendUnavailable("this machine has no usable freezer", hint="see `atoll doctor`")
        deadline = self._loop.time() + _FREEZE_WITHIN_S
        try:
            self._group.begin_freeze()
            while not self._group.is_frozen():
                self._check_alive()
                if self._loop.time() > deadline:
                    raise PlatformError(f"sandbox {self.sandbox_id!r} did not freeze within {_FREEZE_WITHIN_S:.0f} s")
                await asyncio.sleep(0.001)
                self._group.begin_freeze()
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be frozen: {error}") from error
        except BaseException:
            if not self._dead.is_set():
                await self.thaw()
            raise

    async def thaw(self) -> None:
        """See SandboxHandle."""
        self._check_alive()
        try:
            self._group.thaw()
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be thawed: {error}") from error

    async def checkpoint(self, directory: Path) -> None:
        """See SandboxHandle: this tier cannot."""
        raise BackendUnavailable(
            "the namespaces tier cannot checkpoint memory", hint="the gvisor tier can, where runsc is installed"
        )

    # -- the end -------------------------------------------------------------------------------------------------------

    async def wait(self) -> ExitReport:
        """See SandboxHandle."""
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        """See SandboxHandle."""
        if self._detached:
            raise PlatformError(f"sandbox {self.sandbox_id!r} was left alone by this server; adopt it to end it")
        if not self._ended.done():
            if not self._dead.is_set():
                self._killed = True
                pidfd_kill(self._pidfd, signal.SIGKILL)
                # A frozen process dies only when it may run again; the signal is there first, so it runs nothing else.
                with contextlib.suppress(OSError):
                    self._group.thaw()
                try:
                    await asyncio.wait_for(self._dead.wait(), _DIE_WITHIN_S)
                except TimeoutError:
                    raise PlatformError(
                        f"sandbox {self.sandbox_id!r} does not die: process {self.pid} hangs in the kernel"
                    ) from None
            await asyncio.shield(self._ended)
        if self._failure is not None:
            await self._release()
        if self._failure is not None:
            raise PlatformError(self._failure)

    def record(self) -> Mapping[str, Any]:
        """See SandboxHandle."""
        return dict(self._record)

    def detach(self) -> None:
        """The server stops: the sandbox goes on without this handle, whose `wait` will tell nothing any more."""
        if not self._dead.is_set():
            self._dead.set()
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._detached = True

    def _first_process_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._dead.set()
        self._releasing = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        kills = self._group.usage().oom_kills
        await self._release()
        os.close(self._pidfd)
        if not self._killed and self.status is None:
            await asyncio.sleep(_STATUS_GRACE_S)  # the zygote's word may be on its way
        report = ExitReport(self._killed, self._detail(kills))
        self._on_end(self)
        if not self._ended.done():
            self._ended.set_result(report)

    def _detail(self, oom_kills: int | None) -> str:
        if self._killed:
            return "killed"
        if self.status is None:
            how = "its first process ended"
        elif os.WIFSIGNALED(self.status):
            how = f"its first process was ended by signal {signal.Signals(os.WTERMSIG(self.status)).name}"
        else:
            how = f"its first process exited with {os.waitstatus_to_exitcode(self.status)}"
        return f"{how}; the kernel had killed {oom_kills} processes for want of memory" if oom_kills else how

    async def _release(self) -> None:
        """Frees what the kernel does not free by itself."""
        self._failure = None
        with contextlib.suppress(OSError):
            (self._state_dir / GUEST_SOCKET).unlink()
        deadline = self._loop.time() + _RELEASE_WITHIN_S
        try:
            # Half a millisecond of the kernel's for each hierarchy: not in the event loop.
            while not await asyncio.to_thread(self._group.try_remove):
                if self._loop.time() > deadline:
                    self._failure = f"cgroup {self._group.name} of sandbox {self.sandbox_id!r} cannot be removed"
                    return
                await asyncio.sleep(0.002)
        except OSError as error:
            self._failure = f"cgroup of sandbox {self.sandbox_id!r}: {error}"
            return
        self._layout.forget(self._group.name)


def _has_ended(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    return False
