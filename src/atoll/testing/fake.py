"""An isolation backend without any isolation: the real guest as a plain process of this machine. **For tests only.**

    factory: atoll.testing.fake:backend

It keeps the whole contract of `isolation/base.py` but the wall: programs see this machine's files, network and
processes, and run as the user who runs the tests. Users `user` and `root` are both mapped to that account, at home in
`state_dir/home`; no other user exists. That home is its disk: a pause keeps it and ends everything that runs, and a
snapshot is a copy of it. It needs no root, no template and no Linux feature, so everything above the
backend can be tested anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.abc
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from atoll.guest.process import tree
from atoll.isolation import directory
from atoll.isolation.base import (
    CONTROL_PORT,
    GUEST_SOCKET,
    PREAMBLE,
    BackendConfig,
    Capability,
    Captured,
    ExitReport,
    Finding,
    IsolationBackend,
    ReclaimReport,
    SandboxHandle,
    Verdict,
)
from atoll.model.errors import (
    BackendUnavailable,
    CreateFailed,
    MemoryLost,
    NotOffered,
    PlatformError,
    PortClosed,
    SandboxGone,
)
from atoll.model.sandbox import ENVD_PORT, INTERPRETER_PORT, Limits, PauseMode, SandboxPaths, SandboxSpec, SandboxStats

NAME = "fake"
_START_TIMEOUT_S = 30.0
_KILL_TIMEOUT_S = 10.0
_HOME = "home-of-a-fake"
"""In a layer that a snapshot made. Every other layer is this machine's own files."""

# Reads its configuration from stdin, becomes the subreaper of all that it starts (as pid 1 would be), serves.
_GUEST = """
import asyncio, base64, ctypes, os, pickle, socket, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
from atoll.testing.fake import run_guest
run_guest(pickle.loads(base64.b64decode(sys.stdin.readline())))
"""


def run_guest(given: tuple[int, SandboxSpec, str]) -> None:
    """In the guest's process: serves on the inherited listener."""
    from atoll.guest.main import serve
    from atoll.guest.pid1.init import prepare_process
    from atoll.guest.process.users import User, Users

    fd, spec, home = given
    sys.meta_path.insert(0, _Sealed())
    prepare_process()
    account = User("user", os.getuid(), os.getgid(), tuple(os.getgroups()) or (os.getgid(),), home, "/bin/bash")
    asyncio.run(serve(socket.socket(fileno=fd), spec, Users(fixed={"user": account, "root": account})))


class _Sealed(importlib.abc.MetaPathFinder):
    """Refuses every further import, as a changed root would: so that tests here notice a guest that imports lazily."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        print(f"the guest imports {fullname!r} after its start: import it in atoll.guest.main", file=sys.stderr)
        raise ImportError(f"no module {fullname!r} once the root has changed")


def backend(config: BackendConfig) -> IsolationBackend:
    """The entry point's shape of factory."""
    return FakeBackend(config)


class FakeHandle(SandboxHandle):
    """A guest process and everything that it started."""

    tier = NAME

    def __init__(self, sandbox_id: str, state_dir: Path, pid: int, started: int, record_file: Path) -> None:
        self.sandbox_id = sandbox_id
        self._state_dir = state_dir
        self._pid = pid
        self._started = started
        self._record_file = record_file
        self._killed = False
        self._ended = asyncio.Event()
        self._pidfd = -1
        self._watch()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except ProcessLookupError:
            self._note_end()
            return
        loop.add_reader(self._pidfd, self._note_end)

    def _note_end(self) -> None:
        if self._ended.is_set():
            return
        self._ended.set()
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG)
        self._record_file.unlink(missing_ok=True)

    async def dial(self, port: int) -> socket.socket:
        if self._ended.is_set():
            raise SandboxGone(self.sandbox_id)
        try:
            return await dial(self._state_dir, port)
        except ConnectionRefusedError:
            raise PortClosed(self.sandbox_id, port) from None
        except OSError as error:
            raise SandboxGone(self.sandbox_id, str(error)) from error

    async def stats(self) -> SandboxStats:
        if self._ended.is_set():
            raise SandboxGone(self.sandbox_id)
        pids = len(tree.members(self._pid))
        return SandboxStats(None, None, None, Limits().memory_mib * 1024 * 1024, None, 0, pids)

    async def update(self, limits: Limits) -> None:
        if self._ended.is_set():
            raise SandboxGone(self.sandbox_id)

    async def freeze(self) -> None:
        raise BackendUnavailable("the fake tier cannot freeze", hint="use --isolation namespaces")

    async def thaw(self) -> None:
        if self._ended.is_set():
            raise SandboxGone(self.sandbox_id)

    async def pause(self, mode: PauseMode) -> Mapping[str, Any]:
        if mode is not PauseMode.FILESYSTEM:
            raise NotOffered("the fake tier keeps no memory", hint="use --isolation namespaces")
        if self._ended.is_set():
            raise SandboxGone(self.sandbox_id)
        await self.kill()
        os.sync()
        return {"paused": True}

    async def snapshot(self, mode: PauseMode, target: Path, *, durable: bool = True) -> Captured:
        if mode is not PauseMode.FILESYSTEM:
            raise NotOffered("the fake tier keeps no memory", hint="use --isolation namespaces")
        if self._ended.is_set():
            raise SandboxGone(self.sandbox_id)
        layer = target / "layer"
        await asyncio.to_thread(_copy_home, self._state_dir / "home", layer / _HOME)
        return Captured(layer)

    async def wait(self) -> ExitReport:
        await self._ended.wait()
        return ExitReport(self._killed, "killed" if self._killed else "the guest process ended")

    async def kill(self) -> None:
        if self._ended.is_set():
            return
        self._killed = True
        _kill_tree(self._pid)
        try:
            async with asyncio.timeout(_KILL_TIMEOUT_S):
                await self._ended.wait()
        except TimeoutError:
            raise PlatformError(f"the guest of sandbox {self.sandbox_id!r} (pid {self._pid}) does not die") from None
        (self._state_dir / GUEST_SOCKET).unlink(missing_ok=True)

    def record(self) -> Mapping[str, Any]:
        return {"pid": self._pid, "started": self._started}


def _copy_home(home: Path, target: Path, tries: int = 20) -> None:
    """Programs go on meanwhile: what one of them removed just then is no failure, but the copy is begun anew."""
    for left in reversed(range(tries)):
        try:
            shutil.copytree(home, target, symlinks=True)
            return
        except shutil.Error:
            shutil.rmtree(target, ignore_errors=True)
            if not left:
                raise


class FakeBackend(IsolationBackend):
    """Starts guests as processes. Records in `run_dir`, in place of cgroups, let `reclaim` find and end them."""

    name = NAME

    def __init__(self, config: BackendConfig) -> None:
        self._records = config.run_dir / NAME
        self._adopted: set[str] = set()

    @property
    def capabilities(self) -> frozenset[Capability]:
        return frozenset({Capability.ROOTLESS, Capability.PAUSE, Capability.SNAPSHOT})

    async def doctor(self) -> list[Finding]:
        return [Finding(NAME, Verdict.WARN, "fake: no isolation", "for tests only: use --isolation namespaces")]

    async def start(self) -> None:
        self._records.mkdir(parents=True, exist_ok=True)
        print("isolation tier fake: no isolation, programs run on this machine as you", file=sys.stderr)

    async def aclose(self) -> None:
        return None

    async def create(self, spec: SandboxSpec, paths: SandboxPaths) -> SandboxHandle:
        copied = next((layer / _HOME for layer in paths.lower_dirs if (layer / _HOME).is_dir()), None)
        if copied is not None:
            await asyncio.to_thread(shutil.copytree, copied, paths.state_dir / "home", symlinks=True)
        return await self._boot(spec, paths)

    async def resume(
        self, spec: SandboxSpec, paths: SandboxPaths, record: Mapping[str, Any], mode: PauseMode
    ) -> SandboxHandle:
        if mode is not PauseMode.FILESYSTEM:
            raise MemoryLost(f"the memory of sandbox {spec.sandbox_id!r} was not kept")
        return await self._boot(spec, paths)

    def kept(self, state_dir: Path, record: Mapping[str, Any]) -> PauseMode | None:
        return PauseMode.FILESYSTEM

    async def _boot(self, spec: SandboxSpec, paths: SandboxPaths) -> SandboxHandle:
        handle: FakeHandle | None = None
        try:
            handle = self._launch(spec, paths.state_dir)
            async with asyncio.timeout(_START_TIMEOUT_S):
                await _answers(handle)
            return handle
        except BaseException as error:
            if handle is not None:
                with contextlib.suppress(PlatformError):
                    await asyncio.shield(handle.kill())
            (paths.state_dir / GUEST_SOCKET).unlink(missing_ok=True)
            if isinstance(error, OSError | TimeoutError | SandboxGone | PortClosed):
                raise CreateFailed(f"the guest of sandbox {spec.sandbox_id!r} does not start: {error}") from error
            raise

    def _launch(self, spec: SandboxSpec, state_dir: Path) -> FakeHandle:
        home = state_dir / "home"
        home.mkdir(exist_ok=True)
        with _listener(state_dir) as listener, (state_dir / directory.LOG).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", _GUEST],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(),),
                start_new_session=True,
            )
            given = (listener.fileno(), spec.for_guest(), str(home))
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(base64.b64encode(pickle.dumps(given)) + b"\n")
        # The handle reaps by itself; Popen must not complain about a child that it does not know to be gone.
        process.returncode = 0
        started = _start_time(process.pid)
        record_file = self._records / f"{spec.sandbox_id}.json"
        record_file.parent.mkdir(parents=True, exist_ok=True)
        handle = FakeHandle(spec.sandbox_id, state_dir, process.pid, started, record_file)
        record_file.write_text(json.dumps(handle.record()))
        directory.begin(state_dir, NAME, handle.record())
        self._adopted.add(spec.sandbox_id)
        return handle

    async def adopt(self, spec: SandboxSpec, state_dir: Path, record: Mapping[str, Any]) -> SandboxHandle:
        try:
            pid, started = int(record["pid"]), int(record["started"])
        except (KeyError, TypeError, ValueError) as error:
            raise SandboxGone(spec.sandbox_id, f"its record is damaged: {error}") from error
        if _start_time(pid) != started:
            raise SandboxGone(spec.sandbox_id, "its guest process is no more")
        self._adopted.add(spec.sandbox_id)
        return FakeHandle(spec.sandbox_id, state_dir, pid, started, self._records / f"{spec.sandbox_id}.json")

    async def reclaim(self, spare: Set[str]) -> ReclaimReport:
        ended = 0
        for file in self._records.glob("*.json") if self._records.is_dir() else ():
            if file.stem in self._adopted:
                continue
            with contextlib.suppress(ValueError, KeyError, OSError):
                record = json.loads(file.read_text())
                if _start_time(int(record["pid"])) == record["started"]:
                    _kill_tree(int(record["pid"]))
                    ended += 1
                    while _start_time(int(record["pid"])) == record["started"]:  # noqa: ASYNC110  (not our child)
                        await asyncio.sleep(0.005)
            file.unlink(missing_ok=True)
        return ReclaimReport(processes=ended)


async def dial(state_dir: Path, port: int) -> socket.socket:
    """Connects to a guest's socket and says the port. Raises ConnectionRefusedError (port), OSError (guest)."""
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _short(state_dir) as place:
            try:
                await loop.sock_connect(sock, f"{place}/{GUEST_SOCKET}")
            except ConnectionRefusedError as error:
                raise OSError("the guest does not listen") from error
        await loop.sock_sendall(sock, PREAMBLE.format(port=port).encode())
        if port not in (CONTROL_PORT, ENVD_PORT, INTERPRETER_PORT) and await loop.sock_recv(sock, 1) != b"\0":
            raise ConnectionRefusedError(f"nothing listens on port {port}")
    except BaseException:
        sock.close()
        raise
    return sock


async def _answers(handle: FakeHandle) -> None:
    loop = asyncio.get_running_loop()
    with await handle.dial(CONTROL_PORT) as sock:
        await loop.sock_sendall(sock, b"GET /health HTTP/1.1\r\nhost: guest\r\n\r\n")
        answer = await loop.sock_recv(sock, 64)
    if not answer.startswith(b"HTTP/1.1 204"):
        raise OSError(f"the guest ended at once; see guest.log ({answer[:32]!r})")


@contextlib.contextmanager
def _short(directory: Path) -> Any:
    """A short name for a directory: a Unix socket's path has 107 bytes at most."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


@contextlib.contextmanager
def _listener(state_dir: Path) -> Any:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, _short(state_dir) as place:
        sock.bind(f"{place}/{GUEST_SOCKET}")
        sock.listen(1024)
        yield sock


def _start_time(pid: int) -> int:
    """Clock ticks since boot at which `pid` started; 0 when there is no such process (or only its zombie)."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    fields = data[data.rfind(b")") + 2 :].split()
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def _kill_tree(pid: int) -> None:
    """The guest is stopped first: it is the subreaper, so that no descendant can slip away to the machine's init."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        for _ in range(100):
            others = set(tree.members(pid)) - {pid}
            if not others:
                break
            for other in others:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(other, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
