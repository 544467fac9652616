"""Building what a create asks for: once for all who ask, told how far it is or why it failed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from atoll.images import builds
from atoll.images.builds import FAILURE_REMEMBERED_S, TemplateBuilds, how_far, program
from atoll.images.recipes.recipe import OnProgress, Progress
from atoll.model.errors import BuildFailed, TemplateNotFound, TemplateNotReady


class Runs:
    """Builds that end when the test says so."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.go = asyncio.Event()
        self.error: Exception | None = None
        self.steps: list[Progress] = []

    async def __call__(self, name: str, on_progress: OnProgress) -> None:
        self.begun.append(name)
        for step in self.steps:
            on_progress(step)
        try:
            await self.go.wait()
            if self.error is not None:
                raise self.error
        finally:
            self.ended.append(name)


class Clock:
    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


async def test_those_who_ask_at_once_share_one_build() -> None:
    runs = Runs()
    async with TemplateBuilds(runs) as builds:
        asking = [asyncio.create_task(builds.make(name, 20)) for name in ("code-interpreter-v1", "code-interpreter")]
        await asyncio.sleep(0.01)
        runs.go.set()
        await asyncio.gather(*asking)
    assert runs.begun == ["code-interpreter-v1"]


async def test_a_name_without_a_recipe_is_not_found() -> None:
    async with TemplateBuilds(Runs()) as builds:
        with pytest.raises(TemplateNotFound, match="browser"):
            await builds.make("no-such", 1)


async def test_who_waits_too_long_is_told_how_far_it_is_and_the_build_goes_on() -> None:
    runs = Runs()
    runs.steps = [Progress("base", "debian", 0.42, "installing tools")]
    async with TemplateBuilds(runs) as builds:
        with pytest.raises(TemplateNotReady, match=r"'base' is missing and is being built: 42% \(installing tools\)"):
            await builds.make("base", 0.01)
        assert runs.ended == []
        runs.go.set()
        await builds.make("base", 20)
    assert runs.begun == ["base"]


async def test_who_leaves_does_not_end_the_build() -> None:
    runs = Runs()
    async with TemplateBuilds(runs) as builds:
        asking = asyncio.create_task(builds.make("base", 20))
        await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])
        assert runs.ended == []
        runs.go.set()
        await builds.make("base", 20)
    assert runs.begun == ["base"]


async def test_a_failure_is_told_to_all_who_wait_and_the_next_tries_again() -> None:
    runs = Runs()
    runs.error = BuildFailed("no such mirror")
    async with TemplateBuilds(runs) as builds:
        asking = [asyncio.create_task(builds.make("base", 20)) for _ in range(2)]
        await asyncio.sleep(0.01)
        runs.go.set()
        for outcome in await asyncio.gather(*asking, return_exceptions=True):
            assert isinstance(outcome, BuildFailed)
        runs.error = None
        await builds.make("base", 20)
    assert runs.begun == ["base", "base"]


@pytest.mark.parametrize(("later_s", "builds_again"), [(1.0, False), (FAILURE_REMEMBERED_S + 1, True)])
async def test_a_failure_that_nobody_waited_for_is_told_once_to_who_comes_back_soon(
    later_s: float, builds_again: bool
) -> None:
    runs, clock = Runs(), Clock()
    runs.error = OSError("no space")
    async with TemplateBuilds(runs, now=clock) as builds:
        with pytest.raises(TemplateNotReady):
            await builds.make("base", 0.01)
        runs.go.set()
        await asyncio.sleep(0.01)
        assert runs.ended == ["base"]
        clock.s += later_s
        if not builds_again:
            with pytest.raises(BuildFailed, match="no space"):
                await builds.make("base", 20)
        runs.error = None
        await builds.make("base", 20)
    assert runs.begun == ["base", "base"]


async def test_leaving_ends_what_is_being_built() -> None:
    runs = Runs()
    async with TemplateBuilds(runs) as builds:
        builds.prepare(["base", "no-such", "browser"])
        await asyncio.sleep(0.01)
    assert (runs.begun, runs.ended) == (["base"], ["base"])


async def test_templates_are_prepared_one_after_the_other_even_when_one_fails() -> None:
    runs = Runs()
    runs.error = BuildFailed("no")
    runs.go.set()
    async with TemplateBuilds(runs) as builds:
        builds.prepare(["base", "no-such", "browser"])
        await asyncio.sleep(0.05)
    assert runs.begun == ["base", "browser"]


async def test_who_waits_for_a_parent_that_another_build_makes_is_told_how_far_that_one_is() -> None:
    runs = Runs()
    async with TemplateBuilds(runs) as builds:
        runs.steps = [Progress("base", "debian", 0.2, "unpacking")]
        with pytest.raises(TemplateNotReady):
            await builds.make("base", 0.01)
        runs.steps = [Progress("base", "wait", 0.0, "another process is building base")]
        with pytest.raises(TemplateNotReady, match=r"'code-interpreter-v1' .* first 'base', 20% \(unpacking\)"):
            await builds.make("code-interpreter-v1", 0.01)


def test_how_far_it_is_names_the_template_that_was_asked_for() -> None:
    own = how_far("base", Progress("base", "debian", 0.421, "installing tools"), 33.4)
    assert own == "the template 'base' is missing and is being built: 42% (installing tools), for 33 s now"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ('print(\'{"error": "no mirror", "hint": "see the log"}\'); raise SystemExit(1)', r"no mirror \(see the log\)"),
        ("raise SystemExit(7)", "its process ended with 7"),
        ("import os; os.kill(os.getpid(), 9)", "its process ended with"),
    ],
)
async def test_a_build_process_that_fails_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, why: str
) -> None:
    monkeypatch.setattr(builds, "PROGRAM", (sys.executable, "-c", script))
    with pytest.raises(BuildFailed, match=why):
        await program(tmp_path)("base", lambda _: None)
