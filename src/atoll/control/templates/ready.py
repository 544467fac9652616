"""A create of a template with a ready command is answered once what the start command starts can be used."""

from __future__ import annotations

import asyncio

import structlog

from atoll.control.templates.guest import GuestClient
from atoll.control.templates.steps import Settings, shell
from atoll.model.errors import AtollError, PlatformError, SandboxGone
from atoll.model.seams import RouteTable
from atoll.model.template import Template

CREATE_WAITS_S = 30.0
"""Past it the sandbox is handed out as it is: SDKs give up at 60 s, and its owner can look into it."""
EVERY_S = 0.1

_log = structlog.get_logger("atoll.control")


class StartCommands:
    """Reached by the sandboxes' routes."""

    def __init__(self, routes: RouteTable) -> None:
        self._routes = routes

    async def wait_until_ready(self, sandbox_id: str, template: Template) -> None:
        """Returns when the ready command has ended with 0, or after CREATE_WAITS_S. Never raises."""
        try:
            await self.see_ready(sandbox_id, template, CREATE_WAITS_S)
        except AtollError as error:
            _log.warning("template.not_ready", sandbox_id=sandbox_id, template=template.template_id, error=str(error))

    async def see_ready(self, sandbox_id: str, template: Template, within_s: float) -> None:
        """Returns when the ready command has ended with 0. Raises PlatformError: not in time; SandboxGone."""
        route = self._routes.find(sandbox_id)
        if route is None:
            raise SandboxGone(sandbox_id)
        if template.ready_cmd is None:
            return
        settings = Settings(template.default_user, template.default_workdir, template.env_vars)
        guest = GuestClient(route)
        try:
            async with asyncio.timeout(within_s):
                await wait_until_ready(guest, template.ready_cmd, settings, EVERY_S)
        except TimeoutError as error:
            raise PlatformError(
                f"sandbox {sandbox_id!r} of template {template.template_id!r} is not ready after {within_s:.0f} s"
            ) from error
        finally:
            await guest.aclose()


async def wait_until_ready(guest: GuestClient, ready_cmd: str, settings: Settings, every_s: float) -> None:
    """Tries the command until it ends with 0. Cancel it when it has gone on long enough. Raises PlatformError."""
    while True:
        if (await guest.run(shell(ready_cmd, settings))).succeeded:
            return
        await asyncio.sleep(every_s)
