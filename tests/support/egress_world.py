"""Two network namespaces made by the test: the server's, and behind a veth pair the small `support.internet`.

    pytest ── Forward (a thread that lives in the server's namespace) ──► atoll serve ── veth ── internet
       ▲                                                                                            │ canary lines
       └────────────────────────────────────────────────────────────────────────────────────────────┘

Nothing of it touches the machine's own routes or addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from support import internet
from support.host import TOOLS
from support.server import ServerProcess

TESTS = Path(__file__).parents[1]
_CLONE_NEWNET = 0x40000000
HOST_SERVICE = """
import asyncio, json
async def serve(reader, writer):
    address, port = writer.get_extra_info("sockname")[:2]
    data = await reader.read(4096)
    print(json.dumps({"kind": "host", "address": address, "port": port, "data": data.decode("latin-1")}), flush=True)
    writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\nhost service"); await writer.drain(); writer.close()
async def main():
    import sys
    for host, port in (("0.0.0.0", 8099), ("127.0.0.1", 8098), ("::", 8097)):
        await asyncio.start_server(serve, host, port)
    print(json.dumps({"kind": "ready"}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""


def no_world() -> str | None:
    """Why the world cannot be made here; None if it can."""
    if os.geteuid() != 0:
        return "needs root"
    script = "ip link add name t0 type veth peer name t1"
    tried = subprocess.run(["unshare", "-n", "sh", "-c", script], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"no veth pair can be made: {tried.stderr.strip()}"


@dataclass
class Canary:
    """A process that tells in JSON lines what reached it."""

    process: subprocess.Popen[str]
    lines: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def start(command: list[str]) -> Canary:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=TESTS, bufsize=1
        )
        canary = Canary(process)
        threading.Thread(target=canary._read, daemon=True).start()
        canary.wait(lambda line: line["kind"] == "ready", 30)
        return canary

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))

    def wait(self, wanted: Any, seconds: float) -> dict[str, Any] | None:
        """The first line that is wanted, waiting for it; None if none came."""
        deadline = time.monotonic() + seconds
        while True:
            found = next((line for line in list(self.lines) if wanted(line)), None)
            if found is not None or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def heard(self, nonce: str, seconds: float = 0.0) -> bool:
        """Whether anything that carries the nonce arrived."""
        return self.wait(lambda line: nonce in json.dumps(line), seconds) is not None

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


class Forward:
    """A port on this machine's loopback that leads to a port inside the namespace of `pid`."""

    def __init__(self, pid: int, port: int) -> None:
        self._pid, self._target = pid, port
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        namespace = os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY)
        # This thread only: what it connects from now on, it connects in there.
        assert ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        os.close(namespace)
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
            with contextlib.suppress(OSError):
                sink.close()

        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(pump(reader, outer), pump(inner, writer))

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(5)


@dataclass
class World:
    """`internet` and `host` are canaries; `run` runs a script in the server's namespace, without any wall."""

    holder: subprocess.Popen[bytes]
    internet: Canary
    host: Canary
    directory: Path
    templates_dir: Path
    settings: dict[str, str]
    tier: str = "namespaces"
    api_url: str = ""
    forward: Forward | None = None
    server: ServerProcess = field(init=False)

    def enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--"]

    def run(self, script: str, seconds: float = 30) -> str:
        command = [*self.enter(), sys.executable, "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        return done.stdout + done.stderr

    def restart_server(self, how: signal.Signals) -> None:
        """Ends the server and starts another on the same data directory."""
        self.server.stop(how)
        self.start_server()

    def start_server(self) -> None:
        """In the namespace, reached by a port of this machine's loopback."""
        self.server = ServerProcess.start(
            self.directory / "data",
            templates_dir=self.templates_dir,
            options=["--isolation", self.tier],
            environ=self.settings,
            wrap=self.enter(),
        )
        if self.forward is not None:
            self.forward.close()
        self.forward = Forward(self.holder.pid, int(self.server.url.rsplit(":", 1)[1]))
        self.api_url = f"http://127.0.0.1:{self.forward.port}"

    def close(self) -> None:
        """Ends the server and every sandbox."""
        self.server.stop()
        ServerProcess.start(
            self.directory / "data",
            templates_dir=self.templates_dir,
            options=["--isolation", self.tier, "--end-sandboxes"],
            environ=self.settings,
            wrap=self.enter(),
        ).stop()
        if self.forward is not None:
            self.forward.close()

    @property
    def environ(self) -> dict[str, str]:
        return {"E2B_API_KEY": self.server.api_key, "E2B_API_URL": self.api_url, "E2B_SANDBOX_URL": self.api_url}


@contextlib.contextmanager
def world(
    directory: Path,
    templates_dir: Path,
    environ: dict[str, str] | None = None,
    source: str | None = None,
    tier: str = "namespaces",
) -> Iterator[World]:
    """All of it, running. `source`: a Python program that serves in the internet too, and says when it is ready."""
    with contextlib.ExitStack() as stack:
        _make_certificates(directory)
        holder, outside = (_namespace(stack) for _ in range(2))
        _connect(holder.pid, outside.pid)
        enter = ["nsenter", f"--net=/proc/{outside.pid}/ns/net", "--"]
        net = Canary.start([*enter, sys.executable, "-m", "support.internet", str(directory)])
        stack.callback(net.stop)
        if source is not None:
            stack.callback(Canary.start([*enter, sys.executable, "-c", source]).process.kill)
        inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]
        host = Canary.start([*inside, sys.executable, "-c", HOST_SERVICE])
        stack.callback(host.stop)
        settings = {"ATOLL_NAME_SERVERS": internet.DNS, "SSL_CERT_FILE": str(directory / "ca.pem"), **(environ or {})}
        if tier == "gvisor":
            settings["ATOLL_TOOLS_DIR"] = str(TOOLS)
        made = World(holder, net, host, directory, templates_dir, settings, tier)
        made.start_server()
        stack.callback(made.close)
        yield made


def _namespace(stack: contextlib.ExitStack) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(["unshare", "-n", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.callback(holder.wait, 5)
    assert holder.stdin is not None
    assert holder.stdout is not None
    stack.callback(holder.stdin.close)
    holder.stdin.write(b"x")
    holder.stdin.flush()
    assert holder.stdout.read(1) == b"x"  # it is in its namespace now
    return holder


def _connect(inner: int, outer: int) -> None:
    def ip(pid: int, *words: str) -> None:
        subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "--", "ip", *words], check=True)

    ip(inner, "link", "set", "lo", "up")
    ip(outer, "link", "set", "lo", "up")
    ip(inner, "link", "add", "name", "w0", "type", "veth", "peer", "name", "i0", "netns", str(outer))
    ip(inner, "addr", "add", f"{internet.SERVER}/24", "dev", "w0")
    ip(inner, "addr", "add", f"{internet.SERVER_TOO}/32", "dev", "lo")
    ip(outer, "addr", "add", f"{internet.GATEWAY}/24", "dev", "i0")
    ip(inner, "link", "set", "w0", "up")
    ip(outer, "link", "set", "i0", "up")
    ip(inner, "route", "add", "default", "via", internet.GATEWAY)
    allow_ping = "echo 0 65535 > /proc/sys/net/ipv4/ping_group_range"
    subprocess.run(["nsenter", f"--net=/proc/{inner}/ns/net", "--", "sh", "-c", allow_ping], check=True)


def _make_certificates(directory: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    from atoll.tls.authority import Authority

    authority = Authority.kept_in(directory, "test")
    (directory / "ca.pem").write_text(authority.pem)
    key = authority._leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    certificate = authority.issue(internet.NAMES)
    assert x509.load_pem_x509_certificate(certificate).not_valid_after_utc > datetime.datetime.now(datetime.UTC)
    (directory / "site.pem").write_bytes(certificate + key)


Make = Callable[..., Sandbox]


@contextlib.contextmanager
def making(outside: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`Sandbox.create` on that world's server; what it made is killed when the block ends."""
    for name, value in outside.environ.items():
        monkeypatch.setenv(name, value)
    made: list[Sandbox] = []

    def create(**more: Any) -> Sandbox:
        made.append(Sandbox.create(timeout=300, **more))
        return made[-1]

    yield create
    for sandbox in made:
        Sandbox.kill(sandbox.sandbox_id)
