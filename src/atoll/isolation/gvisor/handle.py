"""One live gVisor sandbox as the server sees it: the sentry (by pidfd), its cgroup, the guest's socket.

    LIVE ── kill() or the sentry ends ──► releasing (helpers, cgroup, socket file, record) ──► ended

The sentry is the sandbox: whatever runs inside is its memory and its threads. The gofer and the stubs beside it hold
nothing that outlives it but themselves, and are found by the cgroup.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atoll.isolation.base import CONTROL_PORT, GUEST_SOCKET, PREAMBLE, EgressSockets, ExitReport, SandboxHandle
from atoll.isolation.gvisor import control, start
from atoll.isolation.gvisor.addresses import EGRESS_DNS_PORT, EGRESS_TCP_PORT
from atoll.isolation.linux import disk_usage, guest_socket
from atoll.isolation.linux.cgroups import Cgroups, Group
from atoll.isolation.linux.network_thread import NetworkThread
from atoll.isolation.linux.recorded import has_ended
from atoll.isolation.linux.run_records import RunRecords
from atoll.isolation.linux.syscalls import pidfd_kill
from atoll.model.errors import BackendUnavailable, PlatformError, PortClosed, SandboxGone
from atoll.model.sandbox import ENVD_PORT, INTERPRETER_PORT, Limits, SandboxStats

_GUEST_PORTS = frozenset({CONTROL_PORT, ENVD_PORT, INTERPRETER_PORT})
_RELAY_WITHIN_S = 10.0
_DIE_WITHIN_S = 7.0
_FREEZE_WITHIN_S = 5.0
_DISK_READING_LASTS_S = 10.0
_EGRESS_BACKLOG = 4096


class GvisorHandle(SandboxHandle):
    """See SandboxHandle. Made by the backend only; owns `pidfd`."""

    tier = "gvisor"

    def __init__(
        self,
        record: Mapping[str, Any],
        pidfd: int,
        records: RunRecords,
        cgroups: Cgroups,
        network: NetworkThread | None,
        on_end: Callable[[GvisorHandle], None],
    ) -> None:
        self.sandbox_id = str(record["sandbox_id"])
        self.pid = int(record["pid"])
        self.id_base = int(record["id_base"])
        self.stages: Mapping[str, float] = {}
        self._record = dict(record)
        self._pidfd = pidfd
        self._records = records
        self._group: Group = cgroups.group(record["group"])
        self._limited = cgroups.limited
        self._can_freeze = cgroups.can_freeze
        self._network = network
        self.egress: EgressSockets | None = None
        """The way out until it is fetched."""
        self._on_end = on_end
        self._limits = Limits(**record["limits"])
        self._state_dir = Path(record["state_dir"])
        self._killed = False
        self._frozen = False
        self._detached = False
        self._failure: str | None = None
        self._loop = asyncio.get_running_loop()
        self._dead = asyncio.Event()
        self._ended: asyncio.Future[ExitReport] = self._loop.create_future()
        self._releasing: asyncio.Task[None] | None = None
        self._cpu: tuple[float, float] | None = None
        self._disk: tuple[float, int | None] | None = None
        self._loop.add_reader(pidfd, self._sentry_ended)

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

    def _check_alive(self) -> None:
        if self._dead.is_set() or has_ended(self._pidfd):
            raise SandboxGone(self.sandbox_id, "killed" if self._killed else "its kernel (the sentry) ended")

    # -- limits --------------------------------------------------------------------------------------------------------

    async def stats(self) -> SandboxStats:
        """See SandboxHandle. The disk figure may be some seconds old; processes are counted by the sandbox's kernel."""
        self._check_alive()
        usage = self._group.usage()
        now = time.monotonic()
        percent = None
        if usage.cpu_s is not None:
            then, used = self._cpu or (now, usage.cpu_s)
            percent = 100.0 * (usage.cpu_s - used) / (now - then) if now > then else 0.0
            self._cpu = (now, usage.cpu_s)
        if self._disk is None or now - self._disk[0] > _DISK_READING_LASTS_S:
            self._disk = (now, await asyncio.to_thread(disk_usage.of_tree, self._state_dir / "upper"))
        return SandboxStats(
            cpu_used_pct=percent,
            memory_used=usage.memory_bytes,
            memory_cache=usage.cache_bytes,
            memory_total=self._limits.memory_mib << 20,
            disk_used=self._disk[1],
            disk_total=self._limits.disk_mib << 20,
            pids=None if self._frozen else await self._processes(),
        )

    async def _processes(self) -> int | None:
        try:
            told = await control.request(self._state_dir / GUEST_SOCKET, "GET", "/quota")
        except (OSError, ValueError, TimeoutError):
            self._check_alive()
            return None
        pids = told.get("pids")
        return pids if isinstance(pids, int) else None

    async def update(self, limits: Limits) -> None:
        """See SandboxHandle."""
        self._check_alive()
        if missing := {"memory", "cpu"} - self._limited:
            raise BackendUnavailable(
                f"limits of {', '.join(sorted(missing))} cannot be enforced on this machine",
                hint="no writable cgroup controller; see `atoll doctor`",
            )
        try:
            if limits.pids != self._limits.pids:
                await control.request(self._state_dir / GUEST_SOCKET, "POST", "/quota", {"pids": limits.pids})
            await asyncio.to_thread(self._group.limit, start.host_limits(limits))
        except (OSError, ValueError, TimeoutError) as error:
            self._check_alive()
            raise BackendUnavailable(
                f"the limits of sandbox {self.sandbox_id!r} cannot be changed: {error}",
                hint="it may use more memory now than the new limit allows, or be frozen",
            ) from error
        self._limits = limits
        self._record["limits"] = start.limits_to_json(limits)
        self._records.write_record(self._group.name, self._record)

    # -- stop and go ---------------------------------------------------------------------------------------------------

    async def freeze(self) -> None:
        """See SandboxHandle: the sentry stands still, and everything inside with it."""
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
        self._frozen = True

    async def thaw(self) -> None:
        """See SandboxHandle."""
        self._check_alive()
        try:
            self._group.thaw()
        except OSError as error:
            self._check_alive()
            raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be thawed: {error}") from error
        self._frozen = False

    async def checkpoint(self, directory: Path) -> None:
        """See SandboxHandle: not offered yet."""
        raise BackendUnavailable(
            "the gvisor tier does not write checkpoints of memory yet", hint="freeze keeps it in memory meanwhile"
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

    def _sentry_ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._dead.set()
        self._releasing = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        if self.egress is not None:
            self.egress.connections.close()
            self.egress.questions.close()
            self.egress = None
        kills = self._group.usage().oom_kills
        await self._release()
        os.close(self._pidfd)
        self._on_end(self)
        if not self._ended.done():
            self._ended.set_result(ExitReport(self._killed, self._detail(kills)))

    def _detail(self, oom_kills: int | None) -> str:
        if self._killed:
            return "killed"
        if oom_kills:
            return f"it used more memory than its limit of {self._limits.memory_mib} MiB and was ended by the kernel"
        return "its first process or its kernel (the sentry) ended"

    async def _release(self) -> None:
        """Frees what does not end by itself."""
        self._failure = None
        with contextlib.suppress(OSError):
            (self._state_dir / GUEST_SOCKET).unlink()
        try:
            if not await start.end_group(self._group):
                self._failure = f"cgroup {self._group.name} of sandbox {self.sandbox_id!r} cannot be removed"
                return
        except OSError as error:
            self._failure = f"cgroup of sandbox {self.sandbox_id!r}: {error}"
            return
        self._records.forget(self._group.name)


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
