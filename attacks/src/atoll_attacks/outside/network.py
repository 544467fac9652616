"""Two network namespaces made by the run: the server's, and behind a veth pair a small internet.

    the run ── Forward (a thread that lives in the server's namespace) ──► atoll serve ── veth ── internet
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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll_attacks.outside import internet

_CLONE_NEWNET = 0x40000000


def fault() -> str | None:
    """Why there can be no such networks here; None if it can."""
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
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
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


@dataclass(frozen=True, slots=True)
class Networks:
    """`internet` and `host` are canaries; a command behind `enter` runs in the server's namespace, without any wall."""

    holder: subprocess.Popen[bytes]
    internet: Canary
    host: Canary
    certificates: Path

    @property
    def enter(self) -> list[str]:
        """A command that runs the one behind it in the server's namespace."""
        return ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "--"]

    @property
    def settings(self) -> dict[str, str]:
        """What a server in there needs in its environment."""
        return {"ATOLL_NAME_SERVERS": internet.DNS, "SSL_CERT_FILE": str(self.certificates)}

    @property
    def places(self) -> dict[str, str]:
        """Addresses, for the programs of attempts."""
        return {
            "good": internet.GOOD, "evil": internet.EVIL, "metadata": internet.METADATA, "dns": internet.DNS,
            "server": internet.SERVER, "server_too": internet.SERVER_TOO,
        }  # fmt: skip

    @contextlib.contextmanager
    def forward(self, url: str) -> Iterator[str]:
        """The URL by which a server in there, which listens at `url` on its loopback, is reached from this machine."""
        way = Forward(self.holder.pid, int(url.rsplit(":", 1)[1]))
        try:
            yield f"http://127.0.0.1:{way.port}"
        finally:
            way.close()

    def arrived(self, tag: str, seconds: float = 0.0) -> bool:
        """Whether anything that carries the tag reached a canary, waiting for it."""
        deadline = time.monotonic() + seconds
        while True:
            if self.internet.heard(tag) or self.host.heard(tag):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


@contextlib.contextmanager
def networks(directory: Path, source: str | None = None) -> Iterator[Networks]:
    """Both, with the canaries running; certificates go into the directory.

    `source`: a Python program that serves in the internet too, and says when it is ready.
    """
    with contextlib.ExitStack() as stack:
        _make_certificates(directory)
        holder, outside = (_namespace(stack) for _ in range(2))
        _connect(holder.pid, outside.pid)
        enter = ["nsenter", f"--net=/proc/{outside.pid}/ns/net", "--"]
        here = Path(__file__).parent
        net = Canary.start([*enter, sys.executable, str(here / "internet.py"), str(directory)])
        stack.callback(net.stop)
        if source is not None:
            stack.callback(Canary.start([*enter, sys.executable, "-c", source]).process.kill)
        inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "--"]
        host = Canary.start([*inside, sys.executable, str(here / "host_service.py")])
        stack.callback(host.stop)
        yield Networks(holder, net, host, directory / "ca.pem")


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
