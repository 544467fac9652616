"""The guest's file services behind a real loopback port, for tests that drive them with the real SDK."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from e2b import AsyncSandbox, Sandbox
from e2b.connection_config import ConnectionConfig
from packaging.version import Version

from atoll.guest.files.contents import OPEN_ROUTES, Files
from atoll.guest.files.service import Filesystem
from atoll.guest.process.users import User, Users
from atoll.guest.server import Router
from atoll.guest.state import GuestState
from atoll.guest.watch.service import Watch
from atoll.http1.server import HttpConnection, Request, Response
from atoll.model.sandbox import ENVD_VERSION, SandboxSpec
from atoll.wire.envd.connect import Service
from atoll.wire.envd.filesystem import SERVICE

GUEST_UID = 4321
GUEST_GID = 4322


def make_state(home: str, token: str | None = None) -> GuestState:
    user = User("user", GUEST_UID, GUEST_GID, (GUEST_GID,), home, "/bin/bash")
    config = SandboxSpec("sbx1", "base", access_token=token)
    return GuestState(config, Users(fixed={"user": user}))


def make_router(state: GuestState) -> Router:
    router = Router(state, [*OPEN_ROUTES, ("GET", "/health")])
    service = Service(SERVICE)
    Filesystem(state).register(service)
    Watch(state).register(service)
    router.mount(service)
    Files(state).register(router)

    async def health(request: Request) -> Response:
        return Response(204)

    router.add("GET", "/health", health)
    return router


@asynccontextmanager
async def serve(state: GuestState) -> AsyncIterator[str]:
    """The URL of a server in the running loop."""
    loop = asyncio.get_running_loop()
    router = make_router(state)
    server = await loop.create_server(lambda: HttpConnection(router, loop), "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@contextmanager
def serve_in_thread(state: GuestState) -> Iterator[str]:
    """The same for callers that block: the sync SDK."""
    started: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        async with serve(state) as url:
            started.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        assert ready.wait(10)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def _options(url: str, token: str | None) -> dict[str, object]:
    headers = {"X-Access-Token": token} if token else {}
    config = ConnectionConfig(sandbox_url=url, api_key="unused", extra_sandbox_headers=headers)
    return {
        "sandbox_id": "sbx1",
        "envd_version": Version(ENVD_VERSION),
        "envd_access_token": token,
        "sandbox_domain": None,
        "connection_config": config,
    }


def sandbox(url: str, token: str | None = None) -> Sandbox:
    return Sandbox(**_options(url, token))  # type: ignore[arg-type]


def async_sandbox(url: str, token: str | None = None) -> AsyncSandbox:
    return AsyncSandbox(**_options(url, token))  # type: ignore[arg-type]
