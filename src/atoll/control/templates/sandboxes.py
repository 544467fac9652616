"""The sandboxes that builds make: ordinary ones, but without a row in the store. They count for their team, and none
outlives its block. A server that comes back ends what a killed one left.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.templates.guest import GuestClient
from atoll.model.errors import AtollError, CreateFailed
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import EndReason, Limits, SandboxSpec
from atoll.model.seams import NodeClient, RouteTable
from atoll.model.template import Template


@dataclass(frozen=True, slots=True)
class BuildSandbox:
    """One that runs."""

    sandbox_id: str
    guest: GuestClient


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be made, where and for whom. `image`: what it stands on; None: the newest build of `base`."""

    node: NodeClient
    team_id: str
    template_id: str
    base: Template
    limits: Limits
    image: str | None = None
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    gpu: str | None = None
    """`SandboxSpec.gpu`."""


class BuildSandboxes:
    """`quota`: they count in it as any other; None: they do not."""

    def __init__(
        self, routes: RouteTable, new_sandbox_id: Callable[[], str], quota: SandboxQuota | None = None
    ) -> None:
        self._routes = routes
        self._new_sandbox_id = new_sandbox_id
        self._quota = quota

    @asynccontextmanager
    async def open(self, wanted: Wanted) -> AsyncIterator[BuildSandbox]:
        """Raises QuotaExceeded, CreateFailed and what else a create raises."""
        sandbox_id = self._new_sandbox_id()
        spec = SandboxSpec(
            sandbox_id=sandbox_id,
            template_id=wanted.template_id,
            image_id=wanted.image,
            limits=wanted.limits,
            access_token=secrets.token_hex(32),
            default_user=wanted.base.default_user,
            tier=wanted.base.tier,
            network=wanted.network,
            gpu=wanted.gpu,
            one_off=True,
        )
        if self._quota is not None:
            self._quota.take_for_build(sandbox_id, wanted.team_id, wanted.node.node_id, wanted.limits)
        try:
            await wanted.node.create(spec)
            route = self._routes.find(sandbox_id)
            if route is None:
                raise CreateFailed("the sandbox of the build cannot be reached")
            guest = GuestClient(route)
            try:
                yield BuildSandbox(sandbox_id, guest)
            finally:
                await guest.aclose()
        finally:
            await self._end(wanted.node, sandbox_id)

    async def _end(self, node: NodeClient, sandbox_id: str) -> None:
        try:
            with contextlib.suppress(AtollError):
                await asyncio.shield(node.kill(sandbox_id, EndReason.KILLED))
        finally:
            if self._quota is not None:
                self._quota.release(sandbox_id)
