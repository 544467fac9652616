"""Where the runtime finds a platform, and the embedded one that it starts when nobody named one.

    E2B_API_KEY, E2B_DOMAIN, E2B_API_URL or E2B_DEBUG is set  → whatever the SDK makes of them: E2B's cloud, or a server
    a server runs on the default data directory               → that one: its sandboxes outlive this process
    neither                                                   → an embedded platform of this process

The embedded platform is `atoll serve` as a child process on a free port, with a data directory of its own below
DATA_DIR/embedded and the templates of DATA_DIR. It ends with this process, however that ends: the child watches the
other end of a pipe. One is shared by all runtimes of a process.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from atoll.runtime.errors import AgentRuntimeUnavailableError

SDK_VARIABLES = ("E2B_API_KEY", "E2B_API_URL", "E2B_DOMAIN", "E2B_SANDBOX_URL", "E2B_DEBUG")
START_S = 60.0
NOTE_S = 5
"""How often an embedded platform says how far a template is that somebody waits for."""
STOP_S = 40.0
_LOG_TAIL = 4000


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Where `atoll serve` keeps its state by default."""
    if chosen := environ.get("ATOLL_DATA_DIR"):
        return Path(chosen).absolute()
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local" / "share")
    return Path(base) / "atoll"


def connection(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Parameters for the SDK's calls, {} where the SDK's own variables say it all. See the module.

    Raises AgentRuntimeUnavailableError.
    """
    if any(environ.get(name) for name in SDK_VARIABLES):
        return {}
    return running_server(environ) or shared(environ).parameters()


def running_server(environ: Mapping[str, str]) -> dict[str, Any] | None:
    """SDK parameters for a healthy server of the default data directory whose key we may read, or None."""
    data_dir = default_data_dir(environ)
    try:
        url = json.loads((data_dir / "server.json").read_bytes())["url"]
        keys = [key.strip() for key in environ.get("ATOLL_API_KEYS", "").split(",") if key.strip()]
        key = keys[0] if keys else (data_dir / "api-key").read_text().strip()
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            if answer.status >= 300:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _parameters(str(url), key)


class EmbeddedPlatform:
    """A server of this process's own. A context manager; `start` and `close` may be called more than once.

    `wrap`: a command that runs the one behind it, as `nsenter` does.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, wrap: Sequence[str] = ()) -> None:
        self._wrap = tuple(wrap)
        self._environ = dict(os.environ if environ is None else environ)
        self._root = default_data_dir(self._environ)
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._home: Path | None = None
        self.url = ""
        self.api_key = ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def environ(self) -> dict[str, str]:
        """What points E2B's SDKs at this platform."""
        names = ("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL")
        return {"E2B_API_KEY": self.api_key, **dict.fromkeys(names, self.url)}

    @property
    def home(self) -> Path | None:
        """Its data directory; None before it is started and after it was closed."""
        return self._home

    def parameters(self) -> dict[str, Any]:
        """SDK parameters, once the platform runs. Raises AgentRuntimeUnavailableError."""
        self.start()
        return _parameters(self.url, self.api_key)

    def start(self) -> None:
        """Starts the server and waits until it is ready. Raises AgentRuntimeUnavailableError with its log's end."""
        with self._starting:
            if self._process is not None and self._process.poll() is None:
                return
            self._release()
            below = self._root / "embedded"
            below.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(below)
            self._home = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=below))
            try:
                self._spawn(self._home)
            except BaseException:
                self._release()
                raise

    def _spawn(self, home: Path) -> None:
        ready, ready_writer = os.pipe()
        watched, self._lifeline = os.pipe()
        command = [*self._wrap, sys.executable, "-m", "atoll", "serve", "--port", "0", "--data-dir", str(home)]
        command += ["--end-sandboxes", "--ready-fd", str(ready_writer), "--lifeline-fd", str(watched)]
        environ = {name: value for name, value in self._environ.items() if name not in ("ATOLL_DATABASE_URL",)}
        environ.setdefault("ATOLL_TEMPLATES_DIR", str(self._root / "templates"))
        environ |= {"ATOLL_PREPARE_TEMPLATES": "", "ATOLL_TEMPLATE_WAIT_S": str(NOTE_S)}
        try:
            with (home / "server.log").open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(ready_writer, watched),
                    env=environ,
                    start_new_session=True,  # an interrupt in our terminal is for us; the lifeline is for the server
                )
        finally:
            os.close(ready_writer)
            os.close(watched)
        try:
            answer = json.loads(_line(ready, time.monotonic() + START_S))
            self.url, self.api_key = str(answer["url"]), str(answer["api_key"])
        except (ValueError, KeyError, TypeError) as error:
            raise AgentRuntimeUnavailableError(
                f"the embedded platform did not start: {_tail(home / 'server.log')}",
                hint="`atoll doctor` checks this machine; or set E2B_API_KEY for another platform",
            ) from error
        finally:
            os.close(ready)

    def close(self) -> None:
        """Ends the server and its sandboxes. Idempotent."""
        with self._starting:
            self._release()

    def _release(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._process is not None:
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._home is not None:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None


_shared: dict[int, EmbeddedPlatform] = {}
_sharing = threading.Lock()


def shared(environ: Mapping[str, str] = os.environ) -> EmbeddedPlatform:
    """The platform of this process, started when first used, ended with the process. A forked child gets its own."""
    with _sharing:
        platform = _shared.get(os.getpid())
        if platform is None:
            platform = _shared[os.getpid()] = EmbeddedPlatform(environ)
            atexit.register(_close_if_ours, platform, os.getpid())
        return platform


def _close_if_ours(platform: EmbeddedPlatform, pid: int) -> None:
    if os.getpid() == pid:
        platform.close()


def _parameters(url: str, api_key: str) -> dict[str, Any]:
    return {"api_key": api_key, "api_url": url, "sandbox_url": url}


def _line(fd: int, deadline: float) -> bytes:
    """What came until a newline, the end of the pipe or the deadline."""
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            break
        piece = os.read(fd, 4096)
        if not piece:
            break
        line += piece
    return line


def _tail(log: Path) -> str:
    with suppress(OSError):
        return log.read_text(errors="replace")[-_LOG_TAIL:].strip()
    return "it left no log"


def _sweep(below: Path) -> None:
    """Removes directories of platforms that were killed: nobody holds their lock any more."""
    for home in below.iterdir():
        with suppress(OSError):
            if time.time() - home.stat().st_mtime < START_S:
                continue  # perhaps just being started
            lock = os.open(home / "server.lock", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home, ignore_errors=True)
            finally:
                os.close(lock)
