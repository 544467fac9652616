"""Pause and resume of a node's sandboxes: what lies around the driver's own part.

    running ── hide ──► guest hangs up ──► driver pauses ──► egress detached        (a failure publishes it again)
    paused ──► driver resumes ──► egress attached, published

One at a time for each sandbox. Once begun it is carried to its end, whether its caller waits for it or not.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import structlog

from atoll.images.layers import ImageLayers
from atoll.isolation.base import Capability, SandboxHandle
from atoll.isolation.guest_client import order
from atoll.model.errors import (
    AtollError,
    Conflict,
    CreateFailed,
    GuestUnresponsive,
    NotOffered,
    PlatformError,
    SandboxGone,
)
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import HUNG_UP, PauseMode
from atoll.model.seams import NodePause, NodeSnapshot
from atoll.node.blocking import in_thread
from atoll.node.egress import NodeEgress
from atoll.node.folding import Folding
from atoll.node.live import LiveSandbox, LiveSandboxes

_SENT_AFTER_S = 0.02
"""By then the guest of an older release has sent what it had for its connections, and has ended them."""
_T = TypeVar("_T")

_log = structlog.get_logger("atoll.node")


class NodePausing:
    """Part of the supervisor."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        live: LiveSandboxes,
        egress: NodeEgress,
        images: ImageLayers,
        folding: Folding,
    ) -> None:
        self._tasks = tasks
        self._live = live
        self._egress = egress
        self._images = images
        self._folding = folding

    async def pause(self, sandbox_id: str, mode: PauseMode, *, need_answer: bool) -> NodePause:
        """See NodeClient.pause."""
        return await self._to_its_end(self._pause(self._find(sandbox_id), mode, need_answer), f"pause {sandbox_id}")

    async def resume(self, sandbox_id: str, mode: PauseMode, network: NetworkPolicy) -> SandboxHandle:
        """See NodeClient.resume."""
        return await self._to_its_end(self._resume(self._find(sandbox_id), mode, network), f"resume {sandbox_id}")

    async def snapshot(self, sandbox_id: str, mode: PauseMode | None, image_id: str, *, durable: bool) -> NodeSnapshot:
        """See NodeClient.snapshot."""
        work = self._snapshot(self._find(sandbox_id), mode, image_id, durable)
        return await self._to_its_end(work, f"snapshot {sandbox_id}")

    async def _snapshot(self, live: LiveSandbox, mode: PauseMode | None, image_id: str, durable: bool) -> NodeSnapshot:
        async with live.turn:
            handle, spec = live.handle, live.spec
            if handle is None:
                raise _not_running(live)
            if mode is None:
                can = live.making.backend.capabilities
                mode = PauseMode.MEMORY if Capability.SNAPSHOT_MEMORY in can else PauseMode.FILESYSTEM
                mode = _of_disk_alone(live, mode)
            elif _of_disk_alone(live, mode) is not mode:
                raise NotOffered("nobody saves the memory of a GPU", hint='ask for mode="filesystem"')
            try:
                if durable:
                    await asyncio.to_thread(self._images.settle, live.layers)
                capturing = self._images.capturing(image_id, live.layers, live.tier, durable=durable)
                async with in_thread(capturing) as capture:
                    capture.put(await handle.snapshot(mode, capture.target, durable=durable))
            except (OSError, ValueError) as error:
                raise PlatformError(f"the snapshot of {spec.sandbox_id!r} cannot be kept: {error}") from error
            self._folding.soon(image_id, live.making.backend)
            _log.info("sandbox.snapshot", sandbox_id=spec.sandbox_id, image=image_id, mode=mode.value)
            return NodeSnapshot(
                mode,
                live.tier,
                dict(spec.env_vars),
                spec.default_user,
                spec.default_workdir,
                spec.start_cmd if mode is PauseMode.FILESYSTEM else None,
                spec.interpreter,
                spec.gpu,
                spec.no_new_privileges,
            )

    def _find(self, sandbox_id: str) -> LiveSandbox:
        live = self._live.get(sandbox_id)
        if live is None:
            raise SandboxGone(sandbox_id)
        return live

    async def _to_its_end(self, work: Coroutine[Any, Any, _T], name: str) -> _T:
        answer: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._tasks.create_task(_answer(work, answer), name=name)
        return await asyncio.shield(answer)

    async def _pause(self, live: LiveSandbox, mode: PauseMode, need_answer: bool) -> NodePause:
        async with live.turn:
            handle, mode = live.handle, _of_disk_alone(live, mode)
            if handle is None:
                raise _not_running(live)
            _check_offered(live, mode)
            await self._live.hide(live)
            try:
                live.guest_answered = await _hang_up(handle)
                if need_answer and not live.guest_answered:
                    raise GuestUnresponsive(f"the guest of sandbox {handle.sandbox_id!r} does not answer")
                await self._settle_below(live)
                await live.driver.pause(mode)
            except BaseException:
                self._live.publish(live, handle)
                raise
            await self._live.put_away(live)
            _log.info("sandbox.paused", sandbox_id=handle.sandbox_id, mode=mode.value, answered=live.guest_answered)
            return describe(live, await asyncio.to_thread(size_of, live.making.paths.state_dir))

    async def _settle_below(self, live: LiveSandbox) -> None:
        """What it stands on is to outlive the machine as it does itself."""
        try:
            await asyncio.to_thread(self._images.settle, live.layers)
        except OSError as error:
            raise PlatformError(f"the layers below {live.spec.sandbox_id!r} cannot be kept: {error}") from error

    async def _resume(self, live: LiveSandbox, mode: PauseMode, network: NetworkPolicy) -> SandboxHandle:
        async with live.turn:
            if live.handle is not None:
                raise Conflict(f"sandbox {live.spec.sandbox_id!r} is not paused")
            self._egress.set_aside(live.spec, network)
            handle = await live.driver.resume(mode)
            await self._egress.attach_adopted(handle, network)
            self._live.publish(live, handle)
            _log.info("sandbox.resumed", sandbox_id=live.spec.sandbox_id, mode=mode.value)
            return handle


def _of_disk_alone(live: LiveSandbox, mode: PauseMode) -> PauseMode:
    """For a sandbox with a GPU where memory is written out: no tier can write out what is in the GPU."""
    can = live.making.backend.capabilities
    return PauseMode.FILESYSTEM if live.spec.devices and Capability.MEMORY_ON_DISK in can else mode


def describe(live: LiveSandbox, size: int) -> NodePause:
    """Of a paused one; `size`: see `size_of`."""
    mode = live.driver.paused.mode if live.driver.paused is not None else PauseMode.FILESYSTEM
    in_memory = mode is PauseMode.MEMORY and Capability.MEMORY_ON_DISK not in live.making.backend.capabilities
    return NodePause(mode, live.guest_answered, holds_memory=in_memory, size=size)


_MOST_LISTED = 64


def size_of(state_dir: Path) -> int:
    """Bytes that a paused one takes on the disk. Blocks.

    Of its files and those one level below: a disk, and what was in memory. Not of the tree of one without a disk."""
    places, total = [str(state_dir)], 0
    with suppress(OSError), os.scandir(state_dir) as entries:
        places += [entry.path for entry in islice(entries, _MOST_LISTED) if entry.is_dir(follow_symlinks=False)]
    for place in places:
        with suppress(OSError), os.scandir(place) as entries:
            for entry in islice(entries, _MOST_LISTED):
                if entry.is_file(follow_symlinks=False):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


async def _hang_up(handle: SandboxHandle) -> bool:
    """Its guest ends all connections, with what it has for them sent before. False: it does not answer."""
    try:
        answer = await order(handle, "/hang-up", {})
    except PlatformError as error:
        _log.warning("sandbox.guest_unresponsive", sandbox_id=handle.sandbox_id, error=str(error))
        return False
    if HUNG_UP.encode() not in answer:
        await asyncio.sleep(_SENT_AFTER_S)
    return True


def _not_running(live: LiveSandbox) -> AtollError:
    if live.driver.paused is not None:
        return Conflict(f"sandbox {live.spec.sandbox_id!r} is paused already")
    return SandboxGone(live.spec.sandbox_id, "it is still being made")


def _check_offered(live: LiveSandbox, mode: PauseMode) -> None:
    """Before its connections are cut for nothing. Raises NotOffered."""
    needed = Capability.PAUSE_MEMORY if mode is PauseMode.MEMORY else Capability.PAUSE
    can = live.making.backend.capabilities
    if needed not in can:
        hint = 'ask for mode="filesystem"' if Capability.PAUSE in can else ""
        memory = " with its memory" if Capability.PAUSE in can else ""
        raise NotOffered(f"the tier {live.tier!r} cannot pause a sandbox{memory} on this machine", hint=hint)


async def _answer(work: Coroutine[Any, Any, _T], answer: asyncio.Future[_T]) -> None:
    """Never raises but CancelledError: the task group would end with it."""
    try:
        answer.set_result(await work)
    except asyncio.CancelledError:
        answer.set_exception(CreateFailed("the server is stopping"))
        raise
    except AtollError as error:
        answer.set_exception(error)
    except Exception as error:
        _log.exception("node.pausing_failed")
        answer.set_exception(PlatformError(f"the node failed: {error}"))
    finally:
        answer.exception()  # the caller may be gone
