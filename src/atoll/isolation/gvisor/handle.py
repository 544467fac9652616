"""One live gVisor sandbox: the sentry (by pidfd), its cgroup, the guest's socket; its life is that of LinuxSandbox.

The sentry is the sandbox: whatever runs inside is its memory and its threads. The gofer and the stubs beside it hold
nothing that outlives it but themselves, and are found by the cgroup.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from atoll.isolation.base import GUEST_SOCKET, Captured, EgressSockets
from atoll.isolation.gvisor import launch, saved, start
from atoll.isolation.gvisor import standstill as standstill_left
from atoll.isolation.gvisor.addresses import EGRESS_DNS_PORT, EGRESS_TCP_PORT, GATEWAY
from atoll.isolation.gvisor.container import Container
from atoll.isolation.gvisor.launch import HELD
from atoll.isolation.gvisor.relief import RESERVE, Relief
from atoll.isolation.gvisor.standstill import Standstill
from atoll.isolation.linux.cgroups.full_memory import FullMemory
from atoll.isolation.linux.cgroups.groups import Cgroups, Usage
from atoll.isolation.linux.disk import kept
from atoll.isolation.linux.disk.image import IMAGE
from atoll.isolation.linux.disk.layers import SUFFIX
from atoll.isolation.linux.net import control, guest_socket, held_sockets
from atoll.isolation.linux.process_identity import open_recorded
from atoll.isolation.linux.sandbox import LinuxSandbox
from atoll.model.durable import sync
from atoll.model.errors import NotOffered, PlatformError, PortClosed, SandboxGone
from atoll.model.sandbox import Limits, PauseMode, SandboxSpec

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
        context: start.LaunchContext | None,
    ) -> None:
        super().__init__(spec, state_dir, record, pidfd, cgroups, on_end)
        self.id_base = int(record["id_base"])
        self._context = context
        """None: the backend is not started."""
        self._reachable = asyncio.Event()
        self._reachable.set()
        self._saving = asyncio.Lock()
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
        await self._reachable.wait()
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
            self._relief = Relief(full, self._state_dir, self._report_oom)

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
            answer = await control.request(self._state_dir / GUEST_SOCKET, "GET", "/quota")
        except (OSError, ValueError, TimeoutError):
            self._check_alive()
            return None
        pids = answer.get("pids")
        return pids if isinstance(pids, int) else None

    async def _apply(self, limits: Limits) -> None:
        if limits.pids != self._limits.pids:
            await control.request(self._state_dir / GUEST_SOCKET, "POST", "/quota", {"pids": limits.pids})
        on_host = start.host_limits(limits)
        await asyncio.to_thread(self._group.limit, on_host)
        await asyncio.shield(self._watching)
        if self._relief is not None:
            await asyncio.to_thread(self._relief.limit, on_host.memory_mib << 20)

    # -- saved ---------------------------------------------------------------------------------------------------------

    async def pause(self, mode: PauseMode) -> Mapping[str, Any]:
        """See SandboxHandle. Nothing of it is left but its directory."""
        async with self._saving:
            standstill = self._standstill()
            if self._frozen:
                await self.thaw()
            if mode is PauseMode.MEMORY:
                place = self._state_dir / saved.MEMORY
                await asyncio.to_thread(saved.remove, self._state_dir)
                await self._save(standstill, place, self._flush_disk, memory_last=True)
            else:
                try:
                    await standstill.flush(end=True)
                except (OSError, ValueError, TimeoutError) as error:
                    self._check_alive()
                    raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be paused: {error}") from error
            await self._end_kept(self._settle)
            self._reachable.set()
        return {**self._record, "kept": mode.value}

    async def snapshot(self, mode: PauseMode, target: Path, *, durable: bool = True) -> Captured:
        """See SandboxHandle."""
        if not self._record.get("disk_mib"):
            raise NotOffered(f"the tier {self.tier!r} makes no snapshots without disks of its own; see `atoll doctor`")
        layer, memory = target / f"layer{SUFFIX}", target / saved.MEMORY
        async with self._saving:
            standstill = self._standstill()
            was_frozen = self._frozen
            if was_frozen:
                await self.thaw()

            def copy() -> None:
                kept.copy(self._state_dir / IMAGE, layer)
                if durable:
                    sync(layer)

            with_memory = mode is PauseMode.MEMORY
            await self._save(standstill, memory if with_memory else None, copy, memory_last=False, durable=durable)
            if was_frozen:
                await self.freeze()
        return Captured(layer, memory if with_memory else None)

    async def recover(self) -> None:
        """After an adoption: what an earlier server began with it, and did not end, is undone. Raises SandboxGone."""
        if standstill_left.was_left(self._state_dir):
            await asyncio.to_thread(saved.remove, self._state_dir)
            try:
                await self._standstill().undo()
            except (OSError, TimeoutError, PlatformError) as error:
                raise SandboxGone(self.sandbox_id, f"it stood still and cannot go on: {error}") from error

    async def _save(
        self,
        standstill: Standstill,
        memory: Path | None,
        keep_disk: Callable[[], None],
        *,
        memory_last: bool,
        durable: bool = True,
    ) -> None:
        """Memory and disk as of one moment. `memory_last`: it then stands still; otherwise it goes on.

        Raises PlatformError, SandboxGone: it goes on, and of its memory nothing is left.
        """
        done = False
        try:
            if memory is not None:
                self._reachable.clear()
                await standstill.shut()
            else:
                await standstill.flush()
            await standstill.stop()
            if memory is not None:
                await self._container().checkpoint(memory)
            await asyncio.to_thread(keep_disk)
            if memory is not None:
                await asyncio.to_thread(saved.write, memory, self._engine(), durable=durable)
            done = True
        except (OSError, ValueError, TimeoutError, PlatformError) as error:
            self._check_alive()
            reason = error.message if isinstance(error, PlatformError) else error or type(error).__name__
            raise PlatformError(f"sandbox {self.sandbox_id!r} cannot be saved: {reason}") from error
        finally:
            if not (done and memory_last):
                await asyncio.shield(self._go_on(standstill, None if done else memory))

    async def _go_on(self, standstill: Standstill, unfinished: Path | None) -> None:
        if unfinished is not None:
            await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        try:
            await standstill.undo()
        except (OSError, TimeoutError, PlatformError) as error:
            self._check_alive()
            raise PlatformError(f"sandbox {self.sandbox_id!r} does not go on: {error}") from error
        finally:
            self._reachable.set()

    def _flush_disk(self) -> None:
        if self._record.get("disk_mib"):
            kept.flush(self._state_dir / IMAGE)
        else:
            kept.sync_tree(self._state_dir)

    def _settle(self) -> None:
        if self._record.get("disk_mib"):
            kept.wait_until_released(self._state_dir / IMAGE)
            sync(self._state_dir / IMAGE)
        else:
            kept.sync_tree(self._state_dir)

    def _engine(self) -> saved.Engine:
        engine, context = saved.engine_of(self._record), self._context
        if engine is None or context is None:
            raise NotOffered(f"sandbox {self.sandbox_id!r} was made by an Atoll that could save none")
        if engine.runsc != context.runsc.version:
            raise NotOffered(
                f"sandbox {self.sandbox_id!r} runs by runsc {engine.runsc}, which {context.runsc.version} cannot save"
            )
        return engine

    def _container(self) -> Container:
        self._engine()
        assert self._context is not None
        return Container(
            self._context.runsc.path, self._context.flags(str(self._state_dir / launch.STATE)), self._group.name
        )

    def _standstill(self) -> Standstill:
        self._check_alive()
        return Standstill(self._container(), self._state_dir, self._pidfd)

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
