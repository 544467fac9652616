"""The process `atoll node serve` of one machine, kept alive by who watches it; it outlives its watcher.

    DATA_DIR/agent.json   its id and port, which it keeps, and which process it is now
    DATA_DIR/agent.pem    its certificate
    DATA_DIR/agent.log    what it writes

It is nobody's child: a watcher that is started again finds it by its record. Knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cryptography import x509

from atoll.model import durable
from atoll.model.errors import PlatformError

START_S = 60.0
STOP_S = 40.0
_RENEW_BEFORE = datetime.timedelta(days=30)
"""Of its certificate's end: it says then that it needs one."""
_AUTHORITY = re.compile(r"-----BEGIN CERTIFICATE-----[^-]{1,16384}-----END CERTIFICATE-----\s*$")


@dataclass(frozen=True, slots=True)
class Report:
    """What a watcher says of the process. `authority`: PEM of that which its certificate is of; "": it needs one."""

    node_id: str
    port: int
    pid: int
    is_alive: bool
    load: float
    authority: str


@dataclass(frozen=True, slots=True)
class _Record:
    node_id: str
    port: int = 0
    pid: int = 0
    started: int = 0
    """When, in ticks since the machine was: a process of the same number may be another one later."""


class AgentProcess:
    """`keep_alive` again and again. `isolation`: as `ATOLL_ISOLATION`. One watcher of a directory at a time."""

    def __init__(self, data_dir: Path, isolation: str = "auto", port: int = 0) -> None:
        self._data_dir = data_dir
        self._isolation = isolation
        self._certificate = data_dir / "agent.pem"
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._record = self._read() or _Record(_new_id(), port)
        self._write(self._record)

    def report(self) -> Report:
        """As it is now."""
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        record = self._record
        return Report(record.node_id, record.port, record.pid, self._is_alive(), round(load, 2), self._authority())

    def certify(self, identity: str) -> None:
        """Another certificate than the one before: the process is started anew with it. Raises OSError."""
        durable.write(self._certificate, identity.encode())
        self.stop()

    def keep_alive(self) -> None:
        """Starts it if it does not run and has a certificate. Raises PlatformError (it does not start), OSError."""
        if not self._is_alive() and self._certificate.exists():
            self._start()

    def stop(self) -> None:
        """In order; what runs there goes on, for the next. Idempotent."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._record.pid, number)
            deadline = time.monotonic() + STOP_S
            while self._is_alive() and time.monotonic() < deadline:
                time.sleep(0.05)

    def _start(self) -> None:
        reading, writing = os.pipe()
        try:
            # Of a child Ray would make an end with its actor.
            command = ["setsid", "--fork", sys.executable, "-m", "atoll.cli.main", "node", "serve"]
            command += ["--id", self._record.node_id, "--certificate", str(self._certificate)]
            command += ["--listen", f"0.0.0.0:{self._record.port}", "--data-dir", str(self._data_dir)]
            command += ["--isolation", self._isolation, "--keep-sandboxes", "--ready-fd", str(writing)]
            environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            with (self._data_dir / "agent.log").open("ab") as log:
                subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writing,), env=environ,
                    check=True, cwd="/",
                )  # fmt: skip
            os.close(writing)
            writing = -1
            facts = _read_line(reading)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            raise PlatformError(f"the agent of this machine cannot be started: {error}") from error
        finally:
            for descriptor in (reading, writing):
                if descriptor >= 0:
                    os.close(descriptor)
        pid = int(facts["pid"])
        self._write(replace(self._record, port=int(facts["port"]), pid=pid, started=_started(pid)))

    def _is_alive(self) -> bool:
        return self._record.pid > 0 and _started(self._record.pid) == self._record.started

    def _authority(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            identity = self._certificate.read_text()
            own = x509.load_pem_x509_certificate(identity.encode())  # the first in it
            found = _AUTHORITY.search(identity)
            if found and own.not_valid_after_utc - datetime.datetime.now(datetime.UTC) > _RENEW_BEFORE:
                return found.group().strip()
        return ""

    def _read(self) -> _Record | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return _Record(**json.loads((self._data_dir / "agent.json").read_bytes()))
        return None

    def _write(self, record: _Record) -> None:
        durable.write(self._data_dir / "agent.json", f"{json.dumps(asdict(record))}\n".encode(), mode=0o644)
        self._record = record


def _new_id() -> str:
    """Of a machine: its name, and a few random letters, for others may have the same name."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname().partition(".")[0]).strip("-.")
    return f"{name[:40] or 'node'}-{secrets.token_hex(3)}"


def _started(pid: int) -> int:
    """0: there is no such process, or it has ended."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    return 0


def _read_line(descriptor: int) -> dict[str, int | str]:
    """Raises PlatformError."""
    deadline, line = time.monotonic() + START_S, b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise PlatformError(f"the agent was not ready after {START_S:.0f} s", hint="see agent.log beside its data")
        piece = os.read(descriptor, 4096)
        if not piece:
            raise PlatformError("the agent ended before it was ready", hint="see agent.log in its data directory")
        line += piece
    found: dict[str, int | str] = json.loads(line)
    return found
