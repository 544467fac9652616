"""Building a built-in template that a create asks for and that is missing. Owns the processes that build.

All who ask for one template wait for one build, also those of another server on the same directory (the store's lock).
A build goes on when nobody waits for it any more; it ends with this object at the latest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from atoll.images.recipes.builtin import recipe_named
from atoll.images.recipes.recipe import OnProgress, Progress
from atoll.model.errors import BEING_BUILT, BuildFailed, TemplateNotFound, TemplateNotReady
from atoll.model.tasks import OwnedTasks

FAILURE_REMEMBERED_S = 600.0
"""A retry within this time gets the reason of the failure; a later one starts the build again."""

PROGRAM = (sys.executable, "-m", "atoll.images.build_program")

_LOG_EVERY_S = 5.0
_END_GRACE_S = 10.0

_log = structlog.get_logger("atoll.node")

Run = Callable[[str, OnProgress], Awaitable[None]]
"""Builds the template of that name. Raises BuildFailed."""


@dataclass(slots=True)
class _Build:
    name: str
    began: float
    progress: Progress
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    waiting: int = 0
    ended: float = 0.0


class TemplateBuilds:
    """`async with TemplateBuilds(run) as builds:`; leaving ends what is still being built.

    `run`: see `program`, which builds in a process of its own.
    """

    def __init__(self, run: Run, *, now: Callable[[], float] = time.monotonic) -> None:
        self._run = run
        self._now = now
        self._builds: dict[str, _Build] = {}
        self._steps: dict[str, Progress] = {}
        self._tasks = OwnedTasks()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.aclose()

    async def make(self, name: str, wait_s: float) -> None:
        """Returns when the built-in template `name` has been built. Cancelling gives up the waiting only.

        Raises TemplateNotFound (it is no built-in one), TemplateNotReady after `wait_s`, BuildFailed.
        """
        name = recipe_named(name).name
        build = self._builds.get(name)
        if build is None or (build.done.done() and self._now() - build.ended > FAILURE_REMEMBERED_S):
            build = self._begin(name)
        build.waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                await asyncio.shield(build.done)
        except TimeoutError:
            elapsed_s = self._now() - build.began
            raise TemplateNotReady(
                how_far(name, self._step(build), elapsed_s),
                hint="the build goes on, create the sandbox again in a little while; the server's log follows it",
            ) from None
        finally:
            build.waiting -= 1
            if build.done.done() and self._builds.get(name) is build:
                del self._builds[name]  # its failure has been reported: the next create tries again

    def prepare(self, names: Sequence[str]) -> None:
        """Builds them in the background, one after the other. Failures go into the log and to the waiting creates."""
        if names:
            _log.info(
                "template.prepares", templates=list(names), why="missing; `atoll template list` shows what is there"
            )
            self._tasks.start(self._prepare(names))

    async def _prepare(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                recipe = recipe_named(name)
            except TemplateNotFound as error:
                _log.warning("template.unknown", template=name, error=str(error))
                continue
            build = self._builds.get(recipe.name) or self._begin(recipe.name)
            await asyncio.wait([build.done])

    def _begin(self, name: str) -> _Build:
        build = self._builds[name] = _Build(name, self._now(), Progress(name, "start", 0.0, "starting"))
        self._tasks.start(self._see_through(build))
        return build

    async def _see_through(self, build: _Build) -> None:
        _log.info("template.build_begins", template=build.name, why="it is missing")
        try:
            await self._run(build.name, self._follow(build))
        except asyncio.CancelledError:
            build.done.cancel()
            raise
        except Exception as error:
            _log.error("template.build_failed", template=build.name, error=str(error))
            failed = (
                error if isinstance(error, BuildFailed) else BuildFailed(f"building {build.name!r} failed: {error}")
            )
            build.done.set_exception(failed)
            build.done.exception()  # perhaps nobody waits just now; that is no error
        else:
            _log.info("template.built", template=build.name, seconds=round(self._now() - build.began, 1))
            build.done.set_result(None)
        build.ended = self._now()
        if build.done.exception() is None or build.waiting:
            self._builds.pop(build.name, None)

    def _follow(self, build: _Build) -> OnProgress:
        logged = 0.0

        def on_progress(step: Progress) -> None:
            nonlocal logged
            build.progress = step
            if step.stage != "wait":
                self._steps[step.template] = step
            if self._now() - logged > _LOG_EVERY_S:
                logged = self._now()
                step = self._step(build)
                percent = round(step.fraction * 100)
                _log.info("template.building", template=step.template, percent=percent, step=step.message)

        return on_progress

    def _step(self, build: _Build) -> Progress:
        """One that waits for another build is as far as that one."""
        if build.progress.stage != "wait":
            return build.progress
        return self._steps.get(build.progress.template, build.progress)


def how_far(name: str, step: Progress, elapsed_s: float) -> str:
    """The message for a create that has waited too long. Pure."""
    first = f"first {step.template!r}, " if step.template != name else ""
    return (
        f"the template {name!r} is missing and {BEING_BUILT}: {first}{step.fraction:.0%} ({step.message}), "
        f"for {elapsed_s:.0f} s now"
    )


def program(templates_dir: Path) -> Run:
    """Builds by `build_program`. Its end is the build's, and this process's end is its own."""

    async def run(name: str, on_progress: OnProgress) -> None:
        command = ["setpriv", "--pdeathsig", "TERM", "--", *PROGRAM, str(templates_dir), name]
        pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=pipe)
        assert process.stdout is not None
        failure: dict[str, Any] = {}
        try:
            async for line in process.stdout:
                report = json.loads(line)
                if "error" in report:
                    failure = report
                else:
                    on_progress(Progress(**report))
            status = await process.wait()
        finally:
            await _end(process)
        if status != 0:
            why = failure.get("error", f"its process ended with {status}")
            raise BuildFailed(
                f"the template {name!r} is missing and cannot be built: {why}", hint=failure.get("hint", "")
            )

    return run


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_GRACE_S):
            await process.wait()
            return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
