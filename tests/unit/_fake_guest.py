"""A real guest (without a wall) behind a loopback port, for tests that drive it with the real SDK or with raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e2b import Sandbox
from e2b.connection_config import ConnectionConfig
from packaging.version import Version

from atoll.isolation.base import BackendConfig, SandboxHandle
from atoll.model.sandbox import ENVD_PORT, ENVD_VERSION, SandboxPaths, SandboxSpec
from atoll.testing.fake import FakeBackend


@dataclass(frozen=True)
class RunningGuest:
    """`url` leads to the guest's envd port; `state_dir` holds its socket."""

    url: str
    state_dir: Path
    handle: SandboxHandle
    loop: asyncio.AbstractEventLoop
    token: str | None

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def sandbox(self) -> Sandbox:
        """The published SDK, connected to this guest alone."""
        headers = {"X-Access-Token": self.token} if self.token else {}
        return Sandbox(
            sandbox_id="sbx1",
            envd_version=Version(ENVD_VERSION),
            envd_access_token=self.token,
            sandbox_domain=None,
            connection_config=ConnectionConfig(sandbox_url=self.url, api_key="unused", extra_sandbox_headers=headers),
        )


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _bridge(handle: SandboxHandle) -> object:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = await handle.dial(ENVD_PORT)
        inner_reader, inner_writer = await asyncio.open_unix_connection(sock=sock)
        await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))

    return connected


@contextlib.contextmanager
def running_guest(directory: Path, **config: object) -> Iterator[RunningGuest]:
    """Starts a guest in a thread's loop; ends it and all its processes."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    stop = asyncio.Event()
    started: list[RunningGuest] = []
    state_dir = directory / "sandbox"
    state_dir.mkdir()

    async def run() -> None:
        backend = FakeBackend(BackendConfig(run_dir=directory))
        given = SandboxSpec("sbx1", "base", **config)  # type: ignore[arg-type]
        handle = await backend.create(given, SandboxPaths((), state_dir))
        server = await asyncio.start_server(_bridge(handle), "127.0.0.1", 0)  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        started.append(RunningGuest(url, state_dir, handle, loop, given.access_token))
        ready.set()
        await stop.wait()
        server.close()
        await handle.kill()
        open_connections = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_connections:
            task.cancel()
        await asyncio.gather(*open_connections, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()
