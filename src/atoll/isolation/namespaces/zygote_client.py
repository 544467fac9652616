"""The server's end of the line to the zygote: starts it, asks it for sandboxes, notices when it is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from atoll.isolation.linux.disk.image import Disk
from atoll.isolation.linux.sys import rootless
from atoll.isolation.namespaces import messages
from atoll.isolation.namespaces.layout import RunLayout
from atoll.model.errors import BackendUnavailable, CreateFailed
from atoll.model.sandbox import SandboxPaths, SandboxSpec
from atoll.model.tasks import OwnedTasks

_READY_WITHIN_S = 30.0
_END_WITHIN_S = 5.0
_MARK = "ATOLL_FOOTPRINT_MARK"
_BOOT = "import json,sys; sys.path[:] = json.loads(sys.argv[1]); from atoll.isolation.namespaces.zygote import main; "
_BOOT += "main(int(sys.argv[2]), sys.argv[3])"


class ZygoteLost(Exception):
    """The zygote ended while it was asked; a new one may do it."""


@dataclass(frozen=True, slots=True)
class Created:
    """A sandbox that runs. The receiver owns `pidfd`. `stages`: monotonic seconds by step, for measurements."""

    spec: SandboxSpec
    state_dir: Path
    record: dict[str, Any]
    pidfd: int
    stages: dict[str, float]
    egress: Sequence[int] = ()
    """Its way out, where the server cannot take it itself (rootless); the receiver owns these too."""


OnExit = Callable[[int, int], None]
OnOrphan = Callable[[Created], Coroutine[Any, Any, None]]
OnDiskNeeded = Callable[["ZygoteClient", int], None]
"""(zygote, MiB) for each disk that the zygote needs: its `stock` or `refuse_disk` has to follow, once."""


def _environment() -> dict[str, str]:
    """Nothing of the server's own, which holds keys. A mark that shows whose process this is goes along."""
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    environment.update({name: value for name, value in os.environ.items() if name == _MARK})
    return environment


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[Created]
    spec: SandboxSpec
    state_dir: Path
    given_up: bool = False


class OwnLayer(NamedTuple):
    """What a sandbox has written before it is made: nothing, or as a paused one left it, on the disk at `mount`."""

    is_there: bool
    mount: int | None

    def close(self) -> None:
        """Once."""
        if self.mount is not None:
            os.close(self.mount)


NEW = OwnLayer(is_there=False, mount=None)


def _create_message(number: int, spec: SandboxSpec, paths: SandboxPaths, resumes: bool) -> dict[str, Any]:
    """What the zygote itself needs to know: nothing that is secret, for its memory becomes every later guest's."""
    return {
        "op": "create",
        "id": number,
        "lower_dirs": [str(path.absolute()) for path in paths.lower_dirs],
        "state_dir": str(paths.state_dir.absolute()),
        "limits": spec.limits.as_json(),
        "resumes": resumes,
        "one_off": spec.one_off,
        "volumes": [[mount.device, mount.path] for mount in paths.volumes],
        "devices": [[one.source, one.path] for one in paths.devices.nodes],
        "shown": [[one.source, one.path] for one in paths.devices.mounts],
    }


class ZygoteClient:
    """One zygote. After `lost` is set it is of no more use; make another."""

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[bytes],
        line: socket.socket,
        on_exit: OnExit,
        on_orphan: OnOrphan,
        on_disk_needed: OnDiskNeeded,
    ) -> None:
        self.name = name
        """What the names of all cgroups begin with that this zygote makes."""
        self._process = process
        self._line = line
        self._on_exit = on_exit
        self._on_orphan = on_orphan
        self._on_disk_needed = on_disk_needed
        self._orphans = OwnedTasks()
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}
        self._outgoing: deque[tuple[dict[str, Any], list[int]]] = deque()
        self._disks: deque[Disk] = deque()
        """On their way: closed once they are sent."""
        self._next = 0
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self.lost = asyncio.Event()
        self.no_egress = ""
        """Why sandboxes of this zygote have no way out; "" where they have one."""
        self._loop.add_reader(line.fileno(), self._readable)

    @staticmethod
    async def start(
        layout: RunLayout,
        guest_entry: str,
        park: int,
        no_disk: str,
        on_exit: OnExit,
        on_orphan: OnOrphan,
        on_disk_needed: OnDiskNeeded,
    ) -> ZygoteClient:
        """A zygote that is ready to fork. `no_disk`: why sandboxes get no disks of their own, "" where they do.
        `on_exit(pid, status)` is called for sandboxes that ended, `on_orphan` gets a sandbox whose creator has gone and
        ends it.

        Raises BackendUnavailable with the zygote's own words.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        name = secrets.token_hex(3)
        chosen: dict[str, Any] = {"name": name, "run_dir": str(layout.path), "guest_entry": guest_entry, "park": park}
        chosen |= {"rootless": rootless.is_needed(), "no_disk": no_disk}
        prefix = await asyncio.to_thread(rootless.prefix) if chosen["rootless"] else []
        options = json.dumps(chosen)
        # Padding leaves room in the argument area for the names that the zygote and its children give themselves.
        arguments = [*prefix, sys.executable, "-I", "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno()), options]
        with theirs, open(layout.zygote_log, "ab") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 (once per server; asyncio's own needs a child watcher)
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env=_environment(),
                start_new_session=True,
            )
        client = ZygoteClient(name, process, ours, on_exit, on_orphan, on_disk_needed)
        try:
            await asyncio.wait_for(asyncio.shield(client._ready), _READY_WITHIN_S)
        except (ZygoteLost, TimeoutError) as error:
            await client.aclose()
            raise BackendUnavailable(
                "the zygote of the namespaces tier did not start", hint=f"see {layout.zygote_log}: {error}"
            ) from error
        except BaseException:
            await client.aclose()
            raise
        return client

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._process.pid

    async def create(
        self, spec: SandboxSpec, paths: SandboxPaths, listener: socket.socket, within_s: float, layer: OwnLayer = NEW
    ) -> Created:
        """Raises CreateFailed, ZygoteLost. On any failure or cancellation nothing of the sandbox is left."""
        if self.lost.is_set():
            raise ZygoteLost("the zygote has ended")
        try:
            sealed = messages.seal(spec.for_guest().as_json())
        except (OSError, ValueError) as error:
            raise CreateFailed(str(error)) from error
        number, self._next = self._next, self._next + 1
        pending = _Pending(self._loop.create_future(), spec, paths.state_dir)
        self._pending[number] = pending
        try:
            given = [listener.fileno(), sealed, *([layer.mount] if layer.mount is not None else [])]
            self._send(_create_message(number, spec, paths, layer.is_there), given)
            return await asyncio.wait_for(asyncio.shield(pending.future), within_s)
        except (CreateFailed, ZygoteLost):
            raise
        except BaseException as error:
            await self._abandon(number, pending)
            if isinstance(error, TimeoutError):
                raise CreateFailed(f"the sandbox was not ready within {within_s:.0f} s") from error
            raise
        finally:
            pending.given_up = True
            os.close(sealed)

    def stock(self, disk: Disk) -> None:
        """Gives the zygote a disk that it asked for."""
        if self.lost.is_set():
            disk.discard()
            return
        self._disks.append(disk)
        self._send({"op": "disk", "image": str(disk.image), "size_mib": disk.size_mib}, [disk.mount])

    def refuse_disk(self, size_mib: int, error: str) -> None:
        """Reports that a disk which the zygote asked for cannot be made."""
        if not self.lost.is_set():
            self._send({"op": "no_disk", "size_mib": size_mib, "error": error}, [])

    async def _abandon(self, number: int, pending: _Pending) -> None:
        """Undoes a create whose caller has gone; waits for it even if cancelled again, bounded by the zygote."""
        if not pending.future.done():
            self._send({"op": "cancel", "id": number}, [])
        waiter = asyncio.ensure_future(self._undo(pending))
        while not waiter.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(waiter)

    async def _undo(self, pending: _Pending) -> None:
        await asyncio.wait({pending.future}, timeout=_END_WITHIN_S)
        if pending.future.done() and pending.future.exception() is None:
            await self._on_orphan(pending.future.result())

    async def aclose(self) -> None:
        """Ends the zygote. Sandboxes stay. Idempotent."""
        self._lose("closed")
        for _ in range(int(_END_WITHIN_S / 0.01)):
            if self._process.poll() is not None:
                return
            await asyncio.sleep(0.01)
        self._process.kill()
        self._process.wait()

    def _send(self, body: dict[str, Any], descriptors: list[int]) -> None:
        if self._outgoing:
            self._outgoing.append((body, descriptors))
            return
        try:
            self._send_now(body, descriptors)
        except BlockingIOError:
            self._outgoing.append((body, descriptors))
            self._loop.add_writer(self._line.fileno(), self._writable)
        except OSError as error:
            self._lose(str(error))

    def _send_now(self, body: dict[str, Any], descriptors: list[int]) -> None:
        if body["op"] == "create" and self._pending[body["id"]].given_up:
            return
        messages.send(self._line, body, descriptors)
        if body["op"] == "disk":
            os.close(self._disks.popleft().mount)

    def _writable(self) -> None:
        while self._outgoing:
            body, descriptors = self._outgoing[0]
            try:
                self._send_now(body, descriptors)
            except BlockingIOError:
                return
            except OSError as error:
                self._lose(str(error))
                return
            self._outgoing.popleft()
        self._loop.remove_writer(self._line.fileno())

    def _readable(self) -> None:
        while not self.lost.is_set():
            try:
                body, descriptors = messages.receive(self._line)
            except BlockingIOError:
                return
            except (OSError, ValueError) as error:
                self._lose(str(error))
                return
            if body is None:
                self._lose("the zygote ended")
                return
            self._take(body, descriptors)

    def _take(self, body: dict[str, Any], descriptors: list[int]) -> None:
        kind = body["op"]
        if kind == "disk_needed":
            self._on_disk_needed(self, body["size_mib"])
        elif kind == "exited":
            self._on_exit(body["pid"], body["status"])
        elif kind == "ready" and not self._ready.done():
            self.no_egress = body["no_egress"]
            self._ready.set_result(None)
        elif kind == "broken":
            self._lose(body["error"])
        elif kind in ("created", "failed"):
            self._answer(self._pending.pop(body["id"]), body, descriptors)

    def _answer(self, pending: _Pending, body: dict[str, Any], descriptors: list[int]) -> None:
        if body["op"] == "failed":
            if not pending.given_up:
                pending.future.set_exception(CreateFailed(body["error"]))
            return
        pidfd, *egress = descriptors
        created = Created(pending.spec, pending.state_dir, body["record"], pidfd, body["stages"], egress)
        if not pending.given_up:
            pending.future.set_result(created)
            return
        self._orphans.start(self._on_orphan(created))

    def _lose(self, reason: str) -> None:
        if self.lost.is_set():
            return
        self.lost.set()
        self._loop.remove_reader(self._line.fileno())
        self._loop.remove_writer(self._line.fileno())
        self._line.close()
        self._outgoing.clear()
        while self._disks:
            self._disks.popleft().discard()
        if not self._ready.done():
            self._ready.set_exception(ZygoteLost(reason))
        for pending in self._pending.values():
            if not pending.future.done() and not pending.given_up:
                pending.future.set_exception(ZygoteLost(reason))
        self._pending.clear()
        self._process.poll()
