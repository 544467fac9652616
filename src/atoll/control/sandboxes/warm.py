"""Sandboxes made ahead of need, whose template's server answers already; a create gets one under the id that it has.

    wished (TEMPLATE=N) ──► made, start command run, ready ──► waits ──► taken by a create
                                                                └─► of an older build, ended, or in the way: killed

Where the tier can, the first one's memory is kept as an image: the others, and creates that find none waiting, go on
from there instead of starting the server again. They belong to no team and to no row of the store: one that a server
leaves behind is ended by the next (`Reconciliation`), as is one whose node was started again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from atoll.control.access.auth import DEFAULT_TEAM_ID
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.placement import NodeState
from atoll.control.sandboxes.ids import new_sandbox_id
from atoll.control.sandboxes.placing import Placing
from atoll.control.sandboxes.quota import NO_TEAM, SandboxQuota
from atoll.control.sandboxes.spec import spec_of
from atoll.control.templates.catalog import TemplateService
from atoll.control.templates.names import parse_reference
from atoll.control.templates.ready import StartCommands
from atoll.model.errors import (
    AtollError,
    CreateFailed,
    InvalidRequest,
    NotOffered,
    QuotaExceeded,
    TemplateNotFound,
    TemplateNotReady,
)
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import EndReason, Limits, PauseMode, SandboxSpec
from atoll.model.template import Template

LOOK_EVERY_S = 2.0
"""For templates that were built anew, and sandboxes that have ended."""
READY_WITHIN_S = 300.0
PREPARED_WITHIN_S = 1.0
AFTER_FAILURE_S = 30.0
_STOP_WITHIN_S = 5.0

_log = structlog.get_logger("atoll.control")


class WarmUnusable(CreateFailed):
    """The sandbox that waited does not answer; the create makes one in the ordinary way."""


@dataclass(frozen=True, slots=True)
class Build:
    """What a sandbox must have been made of to serve for it."""

    template_id: str
    build_id: str
    image_id: str | None

    @staticmethod
    def of(template: Template) -> Build:
        return Build(template.template_id, template.build_id, template.image_id)


@dataclass(frozen=True, slots=True)
class WarmSandbox:
    """One that waits. `spec`: what an ordinary create of its template would have asked for."""

    build: Build
    node_id: str
    spec: SandboxSpec


@dataclass(frozen=True, slots=True)
class _Kept:
    """An image with the memory of one that had started."""

    image_id: str
    node_id: str
    tier: str
    spec: SandboxSpec
    """Of the one that had."""


@dataclass(slots=True)
class _Wish:
    name: str
    count: int
    retry_at: float = 0.0


class WarmPool:
    """`run` keeps as many as are wished for; everything else is called by creates.

    Args:
        wishes: how many of which template; a template of another team than the first as `team/name[:tag]`.
        limits_of: how large its sandboxes are unless the call says otherwise.
        forget_logs: of one that has ended.
    """

    def __init__(
        self,
        wishes: Mapping[str, int],
        *,
        nodes: NodeRegistry,
        templates: TemplateService,
        quota: SandboxQuota,
        start_commands: StartCommands,
        limits_of: Callable[[Template], Limits],
        placing: Placing,
        network: NetworkPolicy,
        disk_mib_s: int | None,
        forget_logs: Callable[[str], None],
    ) -> None:
        self._wishes = [_Wish(name, count) for name, count in wishes.items() if count > 0]
        self._nodes = nodes
        self._templates = templates
        self._quota = quota
        self._start_commands = start_commands
        self._limits_of = limits_of
        self._placing = placing
        self._network = network
        self._disk_mib_s = disk_mib_s
        self._forget_logs = forget_logs
        self._waiting: dict[str, WarmSandbox] = {}
        self._kept: dict[Build, _Kept | None] = {}
        self._poked = asyncio.Event()

    # For creates

    def take(self, template: Template, wanted: SandboxSpec) -> WarmSandbox | None:
        """One that can become `wanted`, which it need not be named after; it waits no more."""
        build = Build.of(template)
        for sandbox_id, one in self._waiting.items():
            is_ready = self._nodes.state(one.node_id) is NodeState.READY
            if one.build == build and is_ready and _fits(one.spec, wanted):
                del self._waiting[sandbox_id]
                self._quota.release(sandbox_id)
                self._poked.set()
                return one
        return None

    def put_back(self, one: WarmSandbox) -> None:
        """It was not needed after all."""
        self._quota.take(one.spec.sandbox_id, NO_TEAM, one.node_id, one.spec.limits, beyond_quota=True)
        self._waiting[one.spec.sandbox_id] = one

    def kept(self, template: Template, wanted: SandboxSpec) -> Template | None:
        """As what `wanted` can be made so that its server answers at once, if there is such an image."""
        kept = self._kept.get(Build.of(template))
        return _from(template, kept) if kept is not None and _fits(kept.spec, wanted) else None

    def forget_kept(self, template: Template) -> None:
        """The image is no good."""
        self._kept.pop(Build.of(template), None)

    async def give_way(self) -> bool:
        """Ends one, for a create that finds no room. False: there is none."""
        return await self._give_way(list(self._waiting))

    async def give_gpus_way(self, node_id: str) -> bool:
        """Ends one of that node that has a GPU, for a create that finds none free. False: there is none."""
        holders = [name for name, one in self._waiting.items() if one.node_id == node_id and one.spec.gpu is not None]
        return await self._give_way(holders)

    async def _give_way(self, candidates: Sequence[str]) -> bool:
        if not candidates:
            return False
        await self._end(candidates[-1], self._waiting.pop(candidates[-1]))
        return True

    def images(self) -> Iterable[str]:
        """That are in use here."""
        return [kept.image_id for kept in self._kept.values() if kept is not None]

    # From nodes

    def ended(self, sandbox_id: str) -> None:
        """It has ended by itself."""
        if self._waiting.pop(sandbox_id, None) is not None:
            self._quota.release(sandbox_id)
            self._forget_logs(sandbox_id)
            self._poked.set()

    def node_returned(self, node_id: str) -> None:
        """It was away, and whatever waited there is ended with what the store does not know."""
        for sandbox_id in [name for name, one in self._waiting.items() if one.node_id == node_id]:
            self.ended(sandbox_id)

    # Filling

    async def run(self) -> None:
        """Until it is cancelled; then ends those that wait."""
        if not self._wishes:
            return
        try:
            while True:
                if await self._step():
                    continue
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await self._poked.wait()
                self._poked.clear()
        finally:
            await self._end_all()

    async def _step(self) -> bool:
        """One sandbox nearer to what is wished for; False: nothing can be done now."""
        now = asyncio.get_running_loop().time()
        current: set[Build] = set()
        made, is_certain = False, True
        for wish in self._wishes:
            try:
                team_id, template = await self._find(wish)
                current.add(Build.of(template))
                if not made and wish.retry_at <= now and self._lacks(wish, template):
                    await self._add(team_id, template)
                    made = True
            except TemplateNotFound:
                pass  # it may be built any time
            except TemplateNotReady:
                is_certain = False
            except AtollError as error:
                is_certain = False
                wish.retry_at = now + AFTER_FAILURE_S
                _log.warning("warm.failed", template=wish.name, error=str(error))
        if is_certain:
            await self._end_old(current)
        return made

    async def _find(self, wish: _Wish) -> tuple[str, Template]:
        """Its owner and itself, built if it is one of ours and missing. Raises AtollError."""
        await self._templates.prepare(wish.name, PREPARED_WITHIN_S)
        try:
            namespace = parse_reference(wish.name).namespace
        except InvalidRequest:
            namespace = None
        team_id = await self._templates.team_of(namespace, NO_TEAM) if namespace else DEFAULT_TEAM_ID
        return team_id, await self._templates.find(wish.name, team_id)

    def _lacks(self, wish: _Wish, template: Template) -> bool:
        build = Build.of(template)
        if sum(1 for one in self._waiting.values() if one.build == build) >= wish.count:
            return False
        limits = self._limits_of(template)
        both = Limits(**{name: 2 * getattr(limits, name) for name in Limits.__slots__})
        try:
            self._placing.node_for(template, both)  # so that room is left for another
        except QuotaExceeded:
            return False
        return True

    async def _add(self, team_id: str, template: Template) -> None:
        build, limits = Build.of(template), self._limits_of(template)
        kept = self._kept.get(build)
        spec = spec_of(
            new_sandbox_id(),
            template,
            limits,
            self._network,
            access_token=secrets.token_hex(32),
            disk_mib_s=self._disk_mib_s,
        )
        source = template if kept is None else _from(template, kept)
        real = replace(spec, image_id=source.image_id, tier=source.tier, one_off=True)
        node_id = self._placing.node_for(source, limits)
        node, sandbox_id = self._nodes.client(node_id), spec.sandbox_id
        self._quota.take(sandbox_id, NO_TEAM, node_id, limits)
        one = WarmSandbox(build, node_id, spec)
        try:
            made = await node.create(real)
            await self._start_commands.see_ready(sandbox_id, template, READY_WITHIN_S)
            if kept is None and build not in self._kept:
                self._kept[build] = await self._keep(one, made.tier)
        except BaseException:
            if kept is not None:
                self._kept.pop(build, None)
            await asyncio.shield(self._end(sandbox_id, one))
            raise
        self._waiting[sandbox_id] = one
        _log.info("warm.ready", sandbox_id=sandbox_id, template=template.template_id, restored=kept is not None)

    async def _keep(self, one: WarmSandbox, tier: str) -> _Kept | None:
        """None: its tier cannot."""
        image_id = secrets.token_hex(20)
        try:
            node = self._nodes.client(one.node_id)
            await node.snapshot(one.spec.sandbox_id, image_id, PauseMode.MEMORY, durable=False)
        except NotOffered:
            return None
        except AtollError as error:
            _log.warning("warm.not_kept", template=one.build.template_id, error=str(error))
            return None
        return _Kept(image_id, one.node_id, tier, one.spec)

    # The end

    async def _end_old(self, current: set[Build]) -> None:
        """What stands on a build that is no longer a template's, or on none."""
        for build in [build for build in self._kept if build not in current]:
            del self._kept[build]
        for sandbox_id in [name for name, one in self._waiting.items() if one.build not in current]:
            await self._end(sandbox_id, self._waiting.pop(sandbox_id))

    async def _end_all(self) -> None:
        waiting, self._waiting = self._waiting, {}
        with contextlib.suppress(TimeoutError):  # then the next server ends them
            async with asyncio.timeout(_STOP_WITHIN_S):
                await asyncio.gather(*(self._end(*one) for one in waiting.items()))

    async def _end(self, sandbox_id: str, one: WarmSandbox) -> None:
        """Never raises but CancelledError: a node that cannot is asked again when it is compared with the store."""
        try:
            await self._nodes.client(one.node_id).kill(sandbox_id, EndReason.KILLED)
        except AtollError as error:
            _log.warning("warm.not_ended", sandbox_id=sandbox_id, error=str(error))
        self._quota.release(sandbox_id)
        self._forget_logs(sandbox_id)


def _from(template: Template, kept: _Kept) -> Template:
    return replace(template, image_id=kept.image_id, node_id=kept.node_id, tier=kept.tier)


def _fits(have: SandboxSpec, wanted: SandboxSpec) -> bool:
    """Whether one can become the other by `NodeClient.assign`. What runs in it would not trust a gateway for rules."""
    if wanted.network.rules:
        return False
    return have == replace(
        wanted,
        sandbox_id=have.sandbox_id,
        env_vars=have.env_vars,
        access_token=have.access_token,
        traffic_access_token=have.traffic_access_token,
        mask_request_host=have.mask_request_host,
        network=have.network,
    )
