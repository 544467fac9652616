"""`atoll serve`: the server process from start to end. Owns signals, limits, readiness, the lifeline and the lock.

lock data dir ─► bind ─► compose (adopts, reclaims, listens) ─► tell: server.json, --ready-fd
                                │ SIGTERM, SIGINT, end of --lifeline-fd
                                ▼
                  stop: edge, control, node; forced after STOP_S
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import structlog
import uvloop

from atoll.cli import logs, running
from atoll.cli.compose import platform
from atoll.cli.domain import TlsDomain, open_domain
from atoll.config import Settings
from atoll.control.access.auth import configured_keys
from atoll.edge import bind

STOP_S = 30.0
"""A stop that takes longer ends the process as it is; the next start reclaims what is left."""

_log = structlog.get_logger("atoll.serve")


@dataclass(frozen=True, slots=True)
class Wires:
    """Descriptors that a parent process passed: one to tell that the server is ready, one whose end means "stop"."""

    ready_fd: int | None = None
    lifeline_fd: int | None = None

    def seal(self) -> None:
        """Keeps them from every process that the server starts. Raises OSError for a descriptor that is not open."""
        for fd in (self.ready_fd, self.lifeline_fd):
            if fd is not None:
                os.set_inheritable(fd, False)


def serve(settings: Settings, wires: Wires) -> None:
    """Runs a server until it is told to stop. Raises AtollError, OSError when it cannot start."""
    logs.configure(settings.log_level, settings.log_format)
    _log.debug("starting", data_dir=str(settings.data_dir), isolation=settings.isolation)
    wires.seal()
    _raise_descriptor_limit()
    with running.exclusive(settings.data_dir):
        keys = configured_keys(settings.api_keys, settings.data_dir)
        with contextlib.ExitStack() as sockets:
            tls = open_domain(settings)
            if tls is not None:
                sockets.enter_context(contextlib.closing(tls.sock))
            sock = sockets.enter_context(contextlib.closing(bind(settings.host, settings.port)))
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(settings, keys, sock, tls, wires))


async def _run(
    settings: Settings, keys: Sequence[str], sock: socket.socket, tls: TlsDomain | None, wires: Wires
) -> None:
    stop = _Stop(asyncio.current_task())
    stop.watch(wires)
    url = url_of(settings.host, sock.getsockname()[1])
    try:
        async with platform(settings, tuple(keys), sock, tls):
            stop.started()
            origin = "configured" if settings.api_keys else "generated"
            domain, bundle = (tls.domain, tls.ca_bundle) if tls else (None, None)
            with running.announced(settings.data_dir, url, origin, domain, str(bundle) if bundle else None):
                gc.freeze()  # what is here now stays: neither collections nor the exit need to look at it again
                more = {"domain": domain, "ca": str(bundle)} if domain else {}
                _log.info("ready", url=url, data_dir=str(settings.data_dir), pid=os.getpid(), **more)
                _tell_ready(wires.ready_fd, url, keys[0], more)
                await stop.wanted.wait()
            _log.info("stopping", keep_sandboxes=settings.keep_sandboxes)
            _force_end_after(STOP_S)
    except asyncio.CancelledError:
        if not stop.wanted.is_set():
            raise
    _log.info("stopped")


class _Stop:
    """The wish to stop: from a signal or the end of the lifeline. Cancels a start that is still under way."""

    def __init__(self, starting: asyncio.Task[None] | None) -> None:
        self.wanted = asyncio.Event()
        self._starting = starting

    def started(self) -> None:
        """From now on a stop is only told, by `wanted`."""
        self._starting = None

    def watch(self, wires: Wires) -> None:
        """Listens from now on."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        if wires.lifeline_fd is not None:
            os.set_blocking(wires.lifeline_fd, False)
            loop.add_reader(wires.lifeline_fd, self._on_lifeline, wires.lifeline_fd)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.wanted.is_set():
            _log.warning("told twice to stop: ending at once", signal=number.name)
            os._exit(128 + number)
        self._stop(number.name)

    def _on_lifeline(self, fd: int) -> None:
        try:
            ended = not os.read(fd, 4096)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            ended = True
        if ended:
            asyncio.get_running_loop().remove_reader(fd)
            self._stop("end of the lifeline")

    def _stop(self, cause: str) -> None:
        _log.info("told to stop", cause=cause)
        self.wanted.set()
        if self._starting is not None:
            self._starting.cancel()


def url_of(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}.get(host, host)
    if ":" in reachable and not reachable.startswith("["):
        reachable = f"[{reachable}]"
    return f"http://{reachable}:{port}"


def without_keeping(settings: Settings) -> Settings:
    """The same, but a stop ends the sandboxes."""
    return replace(settings, keep_sandboxes=False)


def _tell_ready(fd: int | None, url: str, key: str, more: Mapping[str, str]) -> None:
    if fd is None:
        return
    with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "w") as out:
        out.write(json.dumps({"url": url, "api_key": key, **more}) + "\n")


def _force_end_after(seconds: float) -> None:
    def end() -> None:
        _log.error("the stop took too long; ending as it is", seconds=seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
