"""Pausing sandboxes and letting them run again: asked for, at a timeout, by a connect, by traffic; all the same way.

    RUNNING ──► PAUSING ──node──► PAUSED ──► RESUMING ──node──► RUNNING

The store says …ING before the node is asked. One transition of a sandbox at a time: who comes meanwhile waits for it
and looks again. Once begun it is carried to its end, also when its caller leaves; what a crash of this process or the
node cuts off is finished by `finish`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import structlog

from atoll.control.access.auth import Caller
from atoll.control.background import Background
from atoll.control.clock import Clock
from atoll.control.events.journal import Journal
from atoll.control.nodes.registry import NodeRegistry
from atoll.control.sandboxes.ending import RETRY_S, SandboxEnding
from atoll.control.sandboxes.expiry import Expiry
from atoll.control.sandboxes.failover import SandboxFailover
from atoll.control.sandboxes.lookup import SandboxLookup
from atoll.control.sandboxes.network import SandboxNetwork
from atoll.control.sandboxes.orders import Policy, check_timeout
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.control.sandboxes.sleeping import SleepingRoutes
from atoll.control.sandboxes.timeouts import SandboxTimeouts
from atoll.control.secrets.service import SecretFilling
from atoll.control.store import Store
from atoll.control.templates.kept import TeamImages
from atoll.model.errors import (
    AtollError,
    Conflict,
    MemoryLost,
    NodeUnreachable,
    QuotaExceeded,
    SandboxGone,
    SandboxNotFound,
)
from atoll.model.events import EventType
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import EndReason, PauseMode, SandboxRecord, SandboxState
from atoll.model.seams import NodeClient, NodePause

AUTO_RESUME_S = 300
"""How long a sandbox runs that traffic has woken."""
_ATTEMPTS = 3
_LOOK_AGAIN_S = 0.1
_T = TypeVar("_T")

_log = structlog.get_logger("atoll.control")


class Connected(NamedTuple):
    """A sandbox that runs, and whether it had to be resumed for that."""

    record: SandboxRecord
    resumed: bool


class SandboxPausing:
    """See the module."""

    def __init__(
        self,
        *,
        store: Store,
        nodes: NodeRegistry,
        lookup: SandboxLookup,
        timeouts: SandboxTimeouts,
        policy: Policy,
        clock: Clock,
        background: Background,
        quota: SandboxQuota,
        expiry: Expiry,
        journal: Journal,
        ending: SandboxEnding,
        sleeping: SleepingRoutes,
        network: SandboxNetwork,
        filling: SecretFilling,
        failover: SandboxFailover,
        images: TeamImages,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._lookup = lookup
        self._timeouts = timeouts
        self._policy = policy
        self._clock = clock
        self._background = background
        self._quota = quota
        self._expiry = expiry
        self._journal = journal
        self._ending = ending
        self._sleeping = sleeping
        self._network = network
        self._filling = filling
        self._failover = failover
        self._images = images
        self._on_disk: set[str] = set()
        """Tiers that have written out the memory of one that was paused."""
        self._under_way: dict[str, asyncio.Future[Any]] = {}

    # Pause

    async def pause(self, caller: Caller, sandbox_id: str, mode: PauseMode, *, strict: bool) -> None:
        """Returns when it is paused, and what it wrote is on the disk of its machine.

        `strict`: only if its guest answers; with its disk alone it has to in any case. Raises SandboxNotFound, Conflict
        (paused already), NotOffered, QuotaExceeded (of the disk, for its memory), GuestUnresponsive, PlatformError.
        """
        while True:
            record = await self._lookup.get(caller, sandbox_id)
            if await self._wait_for_turn(record.sandbox_id):
                continue
            if record.state is not SandboxState.RUNNING:
                raise Conflict(f"sandbox {record.sandbox_id!r} is paused already")
            await self._check_room(record, mode)
            need_answer = strict or mode is PauseMode.FILESYSTEM
            if await self._in_turn(record.sandbox_id, self._pause(record, mode, need_answer=need_answer, is_due=False)):
                return

    def expire(self, sandbox_id: str) -> None:
        """Its timeout has passed: pauses or ends it in the background, unless the timeout was put off meanwhile."""
        self._background.begin(self._expire(sandbox_id))

    async def _expire(self, sandbox_id: str) -> None:
        try:
            record = await self._store.find(sandbox_id)
            if record is None or not record.auto_pause:
                self._ending.expire(sandbox_id)
                return
            mode = PauseMode.MEMORY if record.auto_pause_memory else PauseMode.FILESYSTEM
            try:
                await self._check_room(record, mode)
            except QuotaExceeded as error:  # its files at least are kept
                _log.warning("sandbox.paused_without_memory", sandbox_id=sandbox_id, error=str(error))
                mode = PauseMode.FILESYSTEM
            await self._in_turn(sandbox_id, self._pause(record, mode, need_answer=False, is_due=True))
        except Exception:
            # It is not ended for that: what is in it was to be kept.
            _log.exception("sandbox.auto_pause_failed", sandbox_id=sandbox_id)
            self._expiry.set(sandbox_id, self._clock.now() + timedelta(seconds=RETRY_S))

    async def _check_room(self, record: SandboxRecord, mode: PauseMode) -> None:
        """For its memory, where that is written out. Raises QuotaExceeded."""
        if mode is PauseMode.MEMORY and record.tier in self._on_disk:
            await self._images.check_room(record.team_id)

    async def _pause(self, record: SandboxRecord, mode: PauseMode, *, need_answer: bool, is_due: bool) -> bool:
        """False: it does not run any more, or its timeout was put off."""
        sandbox_id = record.sandbox_id
        if not await self._store.begin_pause(sandbox_id, mode, self._clock.now() if is_due else None):
            return False
        self._expiry.forget(sandbox_id)
        image_id = await self._failover.copy_for_others(record)
        try:
            paused = await self._pause_on_node(record, mode, need_answer=need_answer)
        except NodeUnreachable:
            raise  # nobody knows: `finish` settles it when the node is back
        except SandboxGone as error:
            await self._ending.ended_by_itself(sandbox_id, EndReason.DIED, "it ended while it was being paused")
            raise SandboxNotFound(sandbox_id) from error
        except BaseException:
            if await self._store.transition(sandbox_id, SandboxState.RUNNING, pause_mode=None):
                self._expiry.set(sandbox_id, record.end_at)
            raise
        await self._is_paused(record, paused)
        if image_id is not None:
            self._background.begin(self._failover.share_copy(record, image_id))
        return True

    async def _pause_on_node(self, record: SandboxRecord, mode: PauseMode, *, need_answer: bool) -> NodePause:
        node = self._nodes.client(record.node_id)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await node.pause(record.sandbox_id, mode, need_answer)
            except Conflict:
                # By an earlier attempt, whose answer was lost.
                return await self._described(node, record.sandbox_id)
            except NodeUnreachable:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def _described(self, node: NodeClient, sandbox_id: str) -> NodePause:
        for one in await node.sandboxes():
            if one.sandbox_id == sandbox_id and one.paused is not None:
                return one.paused
        raise SandboxGone(sandbox_id)

    async def _is_paused(self, record: SandboxRecord, paused: NodePause) -> None:
        sandbox_id = record.sandbox_id
        changes: dict[str, Any] = {"pause_mode": paused.mode.value, "guest_answered": paused.guest_answered}
        if not await self._store.transition(sandbox_id, SandboxState.PAUSED, **changes):
            raise SandboxNotFound(sandbox_id)  # it is being ended
        self.note_paused(record, paused)
        self._journal.note(EventType.PAUSED, sandbox_id)

    def note_paused(self, record: SandboxRecord, paused: NodePause) -> None:
        """What is kept in memory of one that is paused: its place in the quota, and what wakes it."""
        self._expiry.forget(record.sandbox_id)
        if not paused.holds_memory:
            self._quota.set_aside(record.sandbox_id, paused.size)
            if paused.mode is PauseMode.MEMORY:
                self._on_disk.add(record.tier)
        if record.auto_resume and paused.mode is PauseMode.MEMORY:
            self._sleeping.add(record, self.wake)

    # Resume

    async def connect(
        self,
        caller: Caller,
        sandbox_id: str,
        timeout_s: int,
        *,
        reboot: bool = False,
        auto_pause: bool | None = None,
    ) -> Connected:
        """A running one is prolonged; a paused one is resumed, and lives that many seconds from then on.

        `reboot` starts a paused one anew on its disk. `auto_pause` changes what its timeout does. Raises
        InvalidRequest, SandboxNotFound, QuotaExceeded, MemoryLost (only `reboot` can help), CreateFailed.
        """
        check_timeout(timeout_s, self._policy)
        while True:
            record = await self._lookup.get(caller, sandbox_id, lost_too=True)
            if await self._wait_for_turn(record.sandbox_id):
                continue
            if self._lookup.is_lost(record):
                back = await self._in_turn(record.sandbox_id, self._bring_back(record, timeout_s))
                if back is None:
                    await asyncio.sleep(_LOOK_AGAIN_S)
                    continue
                return Connected(back, resumed=True)
            if record.state is SandboxState.RUNNING:
                return Connected(await self._timeouts.prolong(caller, record.sandbox_id, timeout_s), resumed=False)
            work = self._resume(record, timeout_s, reboot=reboot, auto_pause=auto_pause)
            if (resumed := await self._in_turn(record.sandbox_id, work)) is not None:
                return Connected(resumed, resumed=True)
            await asyncio.sleep(_LOOK_AGAIN_S)  # another process or a failover is at it

    async def _bring_back(self, record: SandboxRecord, timeout_s: int) -> SandboxRecord | None:
        """One that ran on a node that is lost, as its newest snapshot is."""
        now = self._clock.now()
        changes: dict[str, Any] = {"started_at": now, "end_at": now + timedelta(seconds=timeout_s)}
        return await self._failover.bring_back(replace(record, **changes), changes)

    async def wake(self, sandbox_id: str) -> None:
        """Traffic came for a paused one. Raises SandboxGone where it is not to be woken, and as `connect`."""
        while True:
            await self._wait_for_turn(sandbox_id)
            record = await self._store.find(sandbox_id)
            if record is not None and record.state is SandboxState.RUNNING:
                return
            if record is None or record.state is not SandboxState.PAUSED or not record.auto_resume:
                raise SandboxGone(sandbox_id)
            if record.pause_mode is not PauseMode.MEMORY:
                raise SandboxGone(sandbox_id, "it was paused with its disk alone, and only a connect resumes it")
            timeout_s = min(AUTO_RESUME_S, self._policy.max_timeout_s)
            if await self._in_turn(sandbox_id, self._resume(record, timeout_s)) is not None:
                return

    async def _resume(
        self, record: SandboxRecord, timeout_s: int, *, reboot: bool = False, auto_pause: bool | None = None
    ) -> SandboxRecord | None:
        """None: it is not paused any more."""
        sandbox_id = record.sandbox_id
        mode = PauseMode.FILESYSTEM if reboot or record.pause_mode is not PauseMode.MEMORY else PauseMode.MEMORY
        if mode is PauseMode.MEMORY and not record.guest_answered:
            raise MemoryLost(
                f"the guest of sandbox {sandbox_id!r} did not answer when it was paused",
                hint='on_resume="reboot" starts it anew on its disk',
            )
        was_aside = self._quota.take_back(sandbox_id)
        now = self._clock.now()
        changes: dict[str, Any] = {"started_at": now, "end_at": now + timedelta(seconds=timeout_s)}
        if auto_pause is not None:
            changes["auto_pause"] = auto_pause
        begun = False
        try:
            if self._nodes.is_lost(record.node_id):
                back = await self._failover.bring_back(replace(record, **changes), changes)
                begun = back is not None
                return back
            begun = await self._store.transition(sandbox_id, SandboxState.RESUMING)
            if not begun:
                return None
            return await self._finish_resume(replace(record, **changes), mode, changes)
        finally:
            if not begun and was_aside:
                self._quota.set_aside(sandbox_id)

    async def _finish_resume(
        self, record: SandboxRecord, mode: PauseMode, changes: Mapping[str, Any]
    ) -> SandboxRecord | None:
        sandbox_id, node = record.sandbox_id, self._nodes.client(record.node_id)
        try:
            in_force = await self._filling.as_it_is_now(record.team_id, record.network)
            await self._resume_on_node(node, sandbox_id, mode, in_force)
        except NodeUnreachable:
            raise  # nobody knows: `finish` settles it when the node is back
        except SandboxGone as error:
            if record.kept_image is not None:
                return await self._failover.bring_back(record, changes)
            await self._ending.ended_by_itself(sandbox_id, EndReason.LOST, "its node does not have it any more")
            raise SandboxNotFound(sandbox_id) from error
        except BaseException:
            await self._is_paused_still(record)
            raise
        if not await self._store.transition(
            sandbox_id, SandboxState.RUNNING, pause_mode=None, kept_image=None, **changes
        ):
            raise SandboxNotFound(sandbox_id)  # it is being ended
        self._expiry.set(sandbox_id, record.end_at)
        self._journal.note(EventType.RESUMED, sandbox_id)
        await self._network.follow(record)  # a secret may have been changed meanwhile
        return replace(record, state=SandboxState.RUNNING, pause_mode=None)

    async def _resume_on_node(self, node: NodeClient, sandbox_id: str, mode: PauseMode, network: NetworkPolicy) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await node.resume(sandbox_id, mode, network)
                return
            except Conflict as error:
                if isinstance(error, MemoryLost):
                    raise
                return  # it runs: by an earlier attempt, whose answer was lost
            except NodeUnreachable:
                if attempt == _ATTEMPTS:
                    raise

    async def _is_paused_still(self, record: SandboxRecord) -> None:
        """A resume failed. What is kept of it may be less than before."""
        try:
            paused = await self._described(self._nodes.client(record.node_id), record.sandbox_id)
        except AtollError:
            paused = NodePause(record.pause_mode or PauseMode.FILESYSTEM)
        if await self._store.transition(record.sandbox_id, SandboxState.PAUSED, pause_mode=paused.mode.value):
            self._sleeping.remove(record.sandbox_id)
            self.note_paused(record, paused)

    # What was cut off

    def finish(self, record: SandboxRecord) -> None:
        """In the background, the rest of what the store says has begun (PAUSING, RESUMING)."""
        self._background.begin(self._finish(record.sandbox_id))

    async def _finish(self, sandbox_id: str) -> None:
        try:
            await self._in_turn(sandbox_id, self._finish_now(sandbox_id))
        except Exception as error:
            _log.warning("sandbox.not_finished", sandbox_id=sandbox_id, error=str(error))

    async def _finish_now(self, sandbox_id: str) -> None:
        record = await self._store.find(sandbox_id)
        if record is not None and record.state is SandboxState.PAUSING:
            await self._finish_pause(record)
        elif record is not None and record.state is SandboxState.RESUMING:
            await self._finish_cut_resume(record)

    async def _finish_pause(self, record: SandboxRecord) -> None:
        mode = record.pause_mode or PauseMode.MEMORY
        try:
            paused = await self._pause_on_node(record, mode, need_answer=False)
        except NodeUnreachable:
            raise
        except AtollError:
            if await self._store.transition(record.sandbox_id, SandboxState.RUNNING, pause_mode=None):
                self._expiry.set(record.sandbox_id, record.end_at)
            raise
        await self._is_paused(record, paused)

    async def _finish_cut_resume(self, record: SandboxRecord) -> None:
        end_at = max(record.end_at, self._clock.now() + timedelta(seconds=AUTO_RESUME_S))
        mode = record.pause_mode or PauseMode.FILESYSTEM
        await self._finish_resume(replace(record, end_at=end_at), mode, {"end_at": end_at})

    # Turns

    async def _wait_for_turn(self, sandbox_id: str) -> bool:
        """Whether there was something under way, which is over now."""
        under_way = self._under_way.get(sandbox_id)
        if under_way is None:
            return False
        await asyncio.wait([under_way])
        return True

    async def _in_turn(self, sandbox_id: str, work: Coroutine[Any, Any, _T]) -> _T:
        """After what is under way; the store decides whether it may still begin. A caller that leaves stops nothing."""
        while await self._wait_for_turn(sandbox_id):
            pass
        doing: asyncio.Future[_T] = self._background.begin(work)
        self._under_way[sandbox_id] = doing
        doing.add_done_callback(lambda done: self._forget(sandbox_id, done))
        return await asyncio.shield(doing)

    def _forget(self, sandbox_id: str, done: asyncio.Future[Any]) -> None:
        if self._under_way.get(sandbox_id) is done:
            del self._under_way[sandbox_id]
