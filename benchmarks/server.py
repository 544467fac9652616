"""A server for one benchmark run: its own data directory, the shared templates, and the wires to find its parts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atoll.config import default_data_dir
from atoll.images.store import TemplateStore
from atoll.model.errors import TemplateNotFound
from atoll.model.template import Template
from atoll.testing import footprint

ENVD, INTERPRETER = 49983, 49999


@dataclass(frozen=True, slots=True)
class BenchServer:
    url: str
    api_key: str
    data_dir: Path
    log: Path
    mark: str
    pid: int

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def guest_socket(self, sandbox_id: str) -> Path:
        """Where the guest itself listens: for measuring without the edge."""
        found = next((self.data_dir / "sandboxes" / sandbox_id).glob("**/guest.sock"), None)
        if found is None:
            raise FileNotFoundError(f"no guest socket of {sandbox_id}")
        return found

    def created_events(self) -> list[dict[str, object]]:
        """The server's own log lines about creates, which carry the time of each stage."""
        events = []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == "sandbox.created":
                    events.append(event)
        return events


def templates_dir() -> Path:
    environ = os.environ
    return Path(environ.get("ATOLL_TEMPLATES_DIR") or default_data_dir(environ) / "templates")


def tools_dir() -> Path | None:
    """Where runsc is unpacked: as ATOLL_TOOLS_DIR says, else where `make setup` does it."""
    made = Path(sys.prefix) / "atoll-tools"
    named = os.environ.get("ATOLL_TOOLS_DIR")
    return Path(named) if named else made if made.exists() else None


def find_template(name: str) -> Template | None:
    try:
        return TemplateStore(templates_dir()).find_template(name)
    except TemplateNotFound:
        return None


@contextlib.contextmanager
def serving(isolation: str, *options: str) -> Iterator[BenchServer]:
    """Starts `atoll serve` on a fresh data directory beside the templates; ends it and removes everything after."""
    base = default_data_dir(os.environ)
    base.mkdir(parents=True, exist_ok=True)
    data_dir = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    mark = footprint.new_mark()
    environ = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("E2B_", "ATOLL_"))},
        "ATOLL_TEMPLATES_DIR": str(templates_dir()),
        "ATOLL_LOG_FORMAT": "json",
        footprint.MARKER: mark,
    }
    if tools := tools_dir():
        environ["ATOLL_TOOLS_DIR"] = str(tools)
    ready_in, ready_out = os.pipe()
    log = data_dir / "server.log"
    command = [
        *(sys.executable, "-m", "atoll.cli.main", "serve", "--host", "127.0.0.1", "--port", "0"),
        *("--data-dir", str(data_dir), "--isolation", isolation, "--ready-fd", str(ready_out)),
        "--end-sandboxes",
        *options,
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environ, stdout=out, stderr=out, pass_fds=[ready_out])
    os.close(ready_out)
    try:
        with os.fdopen(ready_in) as ready:
            told = ready.readline()
        if not told:
            raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
        facts = json.loads(told)
        yield BenchServer(facts["url"], facts["api_key"], data_dir, log, mark, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)
        process.kill()
        process.wait()
        for pid in footprint.processes_of(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(data_dir, ignore_errors=True)


class Wire:
    """A keep-alive HTTP connection of the least possible cost: what remains of a call without the SDK."""

    def __init__(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock

    @staticmethod
    def to_server(server: BenchServer) -> Wire:
        return Wire(socket.create_connection(server.address, timeout=60))

    @staticmethod
    def to_guest(server: BenchServer, sandbox_id: str, port: int) -> Wire:
        """Straight to the guest's socket, past the edge."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(60)
        sock.connect(str(server.guest_socket(sandbox_id)))
        sock.sendall(f"ATOLL/1 {port}\n".encode())
        return Wire(sock)

    def call(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> bytes:
        """Sends one request and reads its answer whole. Raises RuntimeError unless the status is 2xx."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        self._sock.sendall(head.encode() + body)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        answer, _, rest = data.partition(b"\r\n\r\n")
        fields = dict(line.split(b":", 1) for line in answer.lower().split(b"\r\n")[1:])
        if b"chunked" in fields.get(b"transfer-encoding", b""):
            while not rest.endswith(b"0\r\n\r\n"):
                rest += self._more()
        else:
            while len(rest) < int(fields.get(b"content-length", b"0")):
                rest += self._more()
        if not answer.split(b" ", 2)[1].startswith(b"2"):
            raise RuntimeError(f"{method} {path}: {answer[:100]!r} {rest[:300]!r}")
        return rest

    def _more(self) -> bytes:
        data = self._sock.recv(1 << 20)
        if not data:
            raise ConnectionError("closed by the other side")
        return data

    def close(self) -> None:
        self._sock.close()
