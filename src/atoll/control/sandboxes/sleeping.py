"""Routes to paused sandboxes that traffic wakes: a caller that dials one waits until it runs, and reaches it then."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Protocol

from atoll.model.errors import AtollError, SandboxGone
from atoll.model.sandbox import SandboxRecord
from atoll.model.seams import Route, RouteSink, RouteTable

Wake = Callable[[str], Awaitable[None]]
"""Sandbox id → returns when it runs. Raises AtollError."""


class Routes(RouteTable, RouteSink, Protocol):
    """What the edge goes by. A node adds the route of a sandbox that runs before it says so."""


class SleepingRoutes:
    """Added and removed here; found and dialled by the edge."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    def add(self, record: SandboxRecord, wake: Wake) -> None:
        """From now on traffic to this paused sandbox wakes it."""
        routes, sandbox_id = self._routes, record.sandbox_id

        async def dial(port: int) -> socket.socket:
            try:
                await wake(sandbox_id)
            except AtollError as error:
                raise SandboxGone(sandbox_id, f"it is paused, and cannot be resumed: {error}") from error
            route = routes.find(sandbox_id)
            if route is None or route.dial is dial:
                raise SandboxGone(sandbox_id, "it is paused")
            return await route.dial(port)

        routes.add(
            Route(
                sandbox_id=sandbox_id,
                dial=dial,
                envd_access_token=record.envd_access_token,
                traffic_access_token=record.traffic_access_token,
                mask_request_host=record.mask_request_host,
            )
        )

    def remove(self, sandbox_id: str) -> None:
        """It has ended. Idempotent."""
        self._routes.remove(sandbox_id)
