"""The programs that serve volumes' contents: one for each that is asked for, until it is idle. See `confined`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import structlog

from atoll import packets
from atoll.isolation.linux.sys.id_ranges import IdRanges, read_delegated
from atoll.model.errors import PlatformError
from atoll.model.tasks import OwnedTasks
from atoll.volumes.confined import Job
from atoll.volumes.store import VolumeStore

_READY_WITHIN_S = 15.0
_END_WITHIN_S = 5.0
_BOOT = "import json,sys; sys.path[:] = json.loads(sys.argv[1]); from atoll.volumes.confined import main; "
_BOOT += "main(int(sys.argv[2]), sys.argv[3])"

_log = structlog.get_logger("atoll.node")


class VolumeServers:
    """Of one node. A start goes on when the one who asked for it has gone: the next will ask again."""

    def __init__(self, store: VolumeStore) -> None:
        self._store = store
        self._ids = IdRanges(read_delegated())
        self._running: dict[str, _Program] = {}
        self._starting: dict[str, asyncio.Task[_Program]] = {}
        self._tasks = OwnedTasks(lambda error: _log.warning("volume.not_served", error=str(error)))

    async def dial(self, volume_id: str) -> socket.socket:
        """A connection to the program of that volume, started if need be. Raises NotFound, PlatformError."""
        self._store.find(volume_id)
        for _ in range(2):  # one may end in between
            program = self._running.get(volume_id) or await self._started(volume_id)
            with contextlib.suppress(OSError):
                return program.connect()
            await self._end(volume_id, program)
        raise PlatformError(f"the contents of volume {volume_id!r} cannot be reached")

    async def end(self, volume_id: str) -> None:
        """Cuts what is under way there."""
        if (starting := self._starting.get(volume_id)) is not None:
            await asyncio.wait([starting])
        if (program := self._running.get(volume_id)) is not None:
            await self._end(volume_id, program)

    async def aclose(self) -> None:
        """Ends all. Idempotent."""
        await asyncio.gather(*(self.end(volume_id) for volume_id in {*self._running, *self._starting}))

    async def _started(self, volume_id: str) -> _Program:
        task = self._starting.get(volume_id)
        if task is None:
            task = self._starting[volume_id] = self._tasks.start(self._start(volume_id))
            task.add_done_callback(lambda _: self._starting.pop(volume_id, None))
        return await asyncio.shield(task)

    async def _start(self, volume_id: str) -> _Program:
        record = self._store.find(volume_id)
        id_base = self._ids.take()
        try:
            device = await asyncio.to_thread(self._store.attach, volume_id)
            try:
                job = Job(volume_id, record.token_digest, device.name, id_base)
                log = self._store.place.parent / "volumes.log"
                program = await asyncio.to_thread(_Program, job, log, lambda: self._forget(volume_id))
                await program.ready()
            finally:
                os.close(device.descriptor)  # it has mounted it
        except BaseException as error:
            self._ids.give_back(id_base)
            if isinstance(error, OSError | ValueError):
                raise PlatformError(f"the contents of volume {volume_id!r} cannot be served: {error}") from error
            raise
        self._running[volume_id] = program
        return program

    def _forget(self, volume_id: str) -> None:
        """It has ended, or is to."""
        program = self._running.pop(volume_id, None)
        if program is not None:
            program.close()
            self._ids.give_back(program.id_base)

    async def _end(self, volume_id: str, program: _Program) -> None:
        if self._running.get(volume_id) is program:
            self._forget(volume_id)
        await program.ended()


class _Program:
    """One process and the line to it."""

    def __init__(self, job: Job, log: Path, on_end: Callable[[], None]) -> None:
        """Blocks for as long as a process takes to be made. Raises OSError."""
        self.id_base = job.id_base
        self._on_end = on_end
        self._sent = 0
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setblocking(False)
        self._started: asyncio.Future[None] | None = None
        with theirs, open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, json.dumps(sys.path), str(theirs.fileno()), job.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            )

    async def ready(self) -> None:
        """Until it takes connections. Raises OSError; it is gone then."""
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        loop.add_reader(self._line.fileno(), self._readable)
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                await self._started
        except BaseException:
            self.close()
            await self.ended()
            raise

    def connect(self) -> socket.socket:
        """Raises OSError: it has ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                packets.send(self._line, packets.encode({"op": "connection"}), (theirs.fileno(),))
            except BaseException:
                ours.close()
                raise
        self._sent += 1
        ours.setblocking(False)
        return ours

    def close(self) -> None:
        """It ends when it sees that. Idempotent."""
        if self._line.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._line.fileno())
            self._line.close()

    async def ended(self) -> None:
        """After `close`."""
        for _ in range(int(_END_WITHIN_S / 0.01)):
            if self._process.poll() is not None:
                return
            await asyncio.sleep(0.01)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def _readable(self) -> None:
        try:
            body, descriptors = packets.receive(self._line)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            body, descriptors = None, []
        for descriptor in descriptors:
            os.close(descriptor)
        op = body.get("op") if body is not None else None
        if op == "ready" and self._started is not None and not self._started.done():
            self._started.set_result(None)
        elif op == "idle" and body is not None and body.get("connections") == self._sent:
            self._let_go("idle")
        elif op not in ("ready", "idle"):
            self._let_go(str(body.get("error"))[:300] if body is not None else "it ended")

    def _let_go(self, reason: str) -> None:
        if self._started is not None and not self._started.done():
            self._started.set_exception(OSError(reason))
            return
        if reason != "idle":
            _log.warning("volume.server_ended", reason=reason)
        self.close()
        self._process.poll()
        self._on_end()
