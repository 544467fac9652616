"""Builds one template: each step in a sandbox of the platform, kept as an image on top of the one before.

    base image ──► sandbox: step 1 ──► commit ──► sandbox: step 2 ──► commit ──► … ──► start and ready command ──► image
                        └── not run when the image of the same inputs is there already (`steps.layer_key`)

Its sandboxes have the template's limits and the platform's network policy; none outlives its step. One whose node is
restarted goes on; a step that needs the node meanwhile is begun again (`node_restarts`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from atoll.control.store.layers import LayerTables
from atoll.control.templates.build_log import BuildLog
from atoll.control.templates.guest import GuestClient
from atoll.control.templates.key_locks import KeyLocks
from atoll.control.templates.node_restarts import despite_restarts
from atoll.control.templates.ready import wait_until_ready
from atoll.control.templates.sandboxes import BuildSandbox, BuildSandboxes, Wanted
from atoll.control.templates.steps import (
    Command,
    Settings,
    Step,
    after,
    base_key,
    command,
    describe,
    gpu_of,
    layer_key,
    shell,
)
from atoll.control.templates.uploads import Uploads, read_pieces
from atoll.model.errors import AtollError, BuildFailed, CreateFailed, NodeUnreachable, PlatformError, SandboxGone
from atoll.model.sandbox import Limits
from atoll.model.seams import NodeClient
from atoll.model.template import Template

T = TypeVar("T")

READY_WITHIN_S = 600.0
READY_EVERY_S = 2.0
DEFAULT_READY = "sleep 20"
"""E2B's: what a start command without a ready command is given."""


class StepFailed(BuildFailed):
    """`step`: "base", the step's number from 1, or "finalize"."""

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What is to be built, and by which node. `base` is what it stands on."""

    node: NodeClient
    team_id: str
    template_id: str
    base: Template
    steps: Sequence[Step]
    limits: Limits
    start_cmd: str | None = None
    ready_cmd: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Built:
    """The image after each step, the last one is the template's; and what its sandboxes start with."""

    images: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True, slots=True)
class _Layer:
    key: str
    below: str | None
    fresh: bool
    """Nothing that was made before may stand in for it, nor for what comes after."""


class TemplateBuilder:
    """Stateless but for the images that are being made just now."""

    def __init__(
        self,
        sandboxes: BuildSandboxes,
        uploads: Uploads,
        index: LayerTables,
    ) -> None:
        self._index = index
        self._sandboxes = sandboxes
        self._uploads = uploads
        self._making = KeyLocks()

    async def build(
        self, order: BuildOrder, log: BuildLog, on_image: Callable[[tuple[str, ...]], Awaitable[None]]
    ) -> Built:
        """Returns once all is done. Cancelled, it leaves no sandbox. Raises StepFailed.

        `on_image` gets all images so far after each one: what is named there is to be kept.
        """
        base = order.base
        settings = Settings(base.default_user, base.default_workdir, dict(base.env_vars))
        key = base_key(order.team_id, base.image_id or f"{base.template_id} {base.build_id}")
        images: list[str] = []
        image = base.image_id
        if image is not None:
            await on_image((image,))  # it may be in no other build
        fresh = order.force
        for number, step in enumerate(order.steps, 1):
            log.step = str(number)
            to_run = command(step, settings)
            if to_run is not None:
                key = layer_key(key, step, settings)
                fresh = fresh or step.force
                work = partial(self._make, order, _Layer(key, image, fresh), step, to_run, log)
                image = await self._despite_restarts(work, log)
                images.append(image)
                await on_image(tuple(images))
            else:
                log.write(f"[{number}/{len(order.steps)}] {describe(step)}")
            settings = after(step, settings)
        log.step = "finalize"
        if image is None:  # not one step has changed a file
            image = await self._despite_restarts(partial(self._keep_base, order, log), log)
        if not images:
            images.append(image)
            await on_image(tuple(images))
        if order.start_cmd:
            await self._despite_restarts(partial(self._try_start, order, images[-1], settings, log), log)
        return Built(tuple(images), settings)

    async def _despite_restarts(self, work: Callable[[], Awaitable[T]], log: BuildLog) -> T:
        try:
            return await despite_restarts(work, log)
        except NodeUnreachable as error:
            raise StepFailed(log.step, str(error)) from error

    async def _keep_base(self, order: BuildOrder, log: BuildLog) -> str:
        async with self._sandbox(order, None, log) as sandbox:
            return await self._commit(order, sandbox.sandbox_id, log)

    async def _make(self, order: BuildOrder, layer: _Layer, step: Step, to_run: Command, log: BuildLog) -> str:
        where = f"[{log.step}/{len(order.steps)}]"
        async with self._making.held(layer.key):
            known = None if layer.fresh else await self._index.find_layer(layer.key)
            if known is not None and await order.node.has_image(known):
                log.write(f"{where} CACHED {describe(step)}")
                return known
            log.write(f"{where} {describe(step)}")
            async with self._sandbox(order, layer.below, log) as sandbox:
                await self._run(order, sandbox.guest, to_run, step, log)
                image = await self._commit(order, sandbox.sandbox_id, log)
            await self._index.put_layer(layer.key, image)
            return image

    async def _commit(self, order: BuildOrder, sandbox_id: str, log: BuildLog) -> str:
        image = secrets.token_hex(20)
        try:
            await order.node.commit(sandbox_id, image)
        except NodeUnreachable:
            raise
        except AtollError as error:
            raise StepFailed(log.step, f"the layer cannot be kept: {error}") from error
        return image

    async def _run(self, order: BuildOrder, guest: GuestClient, to_run: Command, step: Step, log: BuildLog) -> None:
        if to_run.archive:
            path = self._uploads.find(order.team_id, to_run.archive)
            if path is None:
                raise StepFailed(log.step, f"the files of '{step.args[0]}' have not been uploaded")
            inside = f"/tmp/.upload-{secrets.token_hex(8)}"
            await guest.store(inside, read_pieces(path), path.stat().st_size)
            to_run = replace(to_run, argv=(*to_run.argv, inside))
        lines = log.output()
        try:
            outcome = await guest.run(to_run, lines.take)
        except SandboxGone as error:
            raise StepFailed(log.step, f"'{describe(step)}' ended with its sandbox: out of memory? {error}") from error
        except PlatformError as error:
            raise StepFailed(log.step, str(error)) from error
        finally:
            lines.end()
        if not outcome.succeeded:
            why = outcome.error or f"exit status {outcome.exit_code}"
            shown = step.args[0][:300] if step.type == "RUN" else describe(step)
            log.write(f"{describe(step)}: {why}", level="error")
            raise StepFailed(log.step, f"failed to run command '{shown}': {why}")

    async def _try_start(self, order: BuildOrder, image: str, settings: Settings, log: BuildLog) -> None:
        """The start command runs until the ready command ends with 0, or itself does."""
        assert order.start_cmd is not None
        log.write(f"start command: {order.start_cmd[:300]}")
        async with self._sandbox(order, image, log, gpu_of(settings, order.base)) as sandbox:
            guest, lines = sandbox.guest, log.output()
            running = asyncio.ensure_future(guest.run(shell(order.start_cmd, settings), lines.take))
            ready = asyncio.ensure_future(
                wait_until_ready(guest, order.ready_cmd or DEFAULT_READY, settings, READY_EVERY_S)
            )
            try:
                async with asyncio.timeout(READY_WITHIN_S):
                    await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
                    if running.done() and running.result().exit_code != 0:
                        status = running.result().exit_code
                        raise StepFailed("finalize", f"the start command failed: exit status {status}")
                    if ready.done():
                        ready.result()  # its own connection may have failed: that is not ready
            except TimeoutError as error:
                raise StepFailed("finalize", f"the ready command did not succeed in {READY_WITHIN_S:.0f} s") from error
            except (PlatformError, SandboxGone) as error:
                raise StepFailed("finalize", f"the start command was not seen to be ready: {error}") from error
            finally:
                lines.end()
                for task in (running, ready):
                    task.cancel()
                await asyncio.gather(running, ready, return_exceptions=True)
        log.write("the start command is ready")

    @asynccontextmanager
    async def _sandbox(
        self, order: BuildOrder, image: str | None, log: BuildLog, gpu: str | None = None
    ) -> AsyncIterator[BuildSandbox]:
        base = order.base
        template_id = base.template_id if image is None else order.template_id
        wanted = Wanted(order.node, order.team_id, template_id, base, order.limits, image, gpu=gpu)
        async with AsyncExitStack() as stack:
            try:
                try:
                    sandbox = await stack.enter_async_context(self._sandboxes.open(wanted))
                except CreateFailed as error:  # a busy machine may have been too slow; nothing of it is left
                    log.write(f"the sandbox of the build was not made, it is tried once more: {error}", level="warn")
                    sandbox = await stack.enter_async_context(self._sandboxes.open(wanted))
            except NodeUnreachable:
                raise
            except AtollError as error:
                raise StepFailed(log.step or "base", f"the sandbox of the build was not made: {error}") from error
            yield sandbox
