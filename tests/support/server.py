"""A real `atoll serve` as a process of its own. Stopped by its pid; its log is kept for failed tests."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

START_S = 60.0
STOP_S = 40.0
STALLS: list[str] = []
"""Lines in which servers of this session say that their event loop stood still; who wants that takes his own out."""


class ServerDied(Exception):
    """The server ended or did not get ready; the message holds the end of its log."""


@dataclass
class ServerProcess:
    """Start with `ServerProcess.start`, end with `stop`. `url` and `api_key` are what it told itself."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    log: Path
    url: str = ""
    api_key: str = field(default="", repr=False)
    port: int = 0
    """Of a node alone."""
    _stalls_noted: int = field(default=0, repr=False)

    @staticmethod
    def start(
        data_dir: Path,
        *,
        templates_dir: Path | None = None,
        options: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        port: int = 0,
        wrap: Sequence[str] = (),
        words: Sequence[str] | None = None,
        python: Path | str = sys.executable,
    ) -> ServerProcess:
        """Starts a server on a free port and waits until it is ready. Raises ServerDied.

        `wrap`: a command that runs the one behind it, as `nsenter` does. `words`: of another command of `atoll` that
        serves; None: `serve` on `port`.
        """
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        log = data_dir.parent / f"{data_dir.name}.log"
        reading, writing = os.pipe()
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "E2B_"))}
        if templates_dir is not None:
            clean["ATOLL_TEMPLATES_DIR"] = str(templates_dir)
        command = [
            *wrap,
            str(python),
            "-m",
            "atoll.cli.main",
            *(("serve", "--port", str(port)) if words is None else words),
            "--data-dir",
            str(data_dir),
        ]
        command += ["--ready-fd", str(writing), *options]
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=(writing,),
                env={**clean, "ATOLL_LOG_LEVEL": "debug", "ATOLL_PREPARE_TEMPLATES": "", **(environ or {})},
            )
        os.close(writing)
        server = ServerProcess(process, data_dir, log)
        try:
            server._read_ready(reading)
        except BaseException:
            server.stop(signal.SIGKILL)
            raise
        finally:
            os.close(reading)
        return server

    def _read_ready(self, reading: int) -> None:
        deadline, line = time.monotonic() + START_S, b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([reading], [], [], left)[0]:
                raise ServerDied(f"not ready after {START_S:g} s\n{self.log_tail()}")
            piece = os.read(reading, 4096)
            if not piece:
                raise ServerDied(f"ended with {self.process.wait(10)} before it was ready\n{self.log_tail()}")
            line += piece
        told = json.loads(line)
        self.url, self.api_key = told.get("url", ""), told.get("api_key", "")
        self.port = told.get("port", 0)

    @property
    def environ(self) -> dict[str, str]:
        """What points the published SDKs at this server."""
        return {
            "E2B_API_KEY": self.api_key,
            "E2B_API_URL": self.url,
            "E2B_SANDBOX_URL": self.url,
            "E2B_VOLUME_API_URL": self.url,
        }

    @property
    def pid(self) -> int:
        return self.process.pid

    def pid_of(self, role: str) -> int:
        """The process `node`, `front` or `egress` of this server, as it is now. Raises ProcessLookupError."""
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0") == f"atoll: {role}".encode():
                    return int(pid)
        raise ProcessLookupError(f"the server has no process {role!r} now")

    def descriptors(self) -> int:
        """How many its processes have open, together."""
        pids = [self.pid, *(self.pid_of(role) for role in ("node", "front", "egress"))]
        return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends it and returns its exit status. Idempotent."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                self.process.send_signal(how)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise ServerDied(f"did not stop within {STOP_S:g} s\n{self.log_tail()}") from None
        finally:
            self._note_stalls()

    def _note_stalls(self) -> None:
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()[self._stalls_noted :]
            self._stalls_noted += len(lines)
            STALLS.extend(f"{self.log}: {line}" for line in lines if "loop.stalled" in line)

    def log_tail(self, lines: int = 60) -> str:
        """The end of what it wrote."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""
