"""What a build makes of a start command whose ready command cannot be asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from atoll.control.templates.build_log import BuildLog
from atoll.control.templates.builder import BuildOrder, StepFailed, TemplateBuilder
from atoll.control.templates.guest import Outcome
from atoll.control.templates.sandboxes import BuildSandbox
from atoll.control.templates.steps import Command
from atoll.model.errors import CreateFailed, PlatformError, QuotaExceeded, SandboxGone
from atoll.model.sandbox import Limits
from atoll.model.template import Template

BASE = Template("base", (), "1", (), Limits(), datetime.now(UTC), image_id="a" * 40)


class Guest:
    """Its start command goes on; what is asked of it otherwise ends in `error`."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def run(self, command: Command, _on_output: Callable[[bytes, bool], None] = lambda *_: None) -> Outcome:
        if command.argv[-1] == "start":
            await asyncio.sleep(600)
        raise self._error


class Sandboxes:
    """The first `slow` of them do not start."""

    def __init__(self, error: Exception, slow: int = 0) -> None:
        self._error = error
        self._slow = slow

    @asynccontextmanager
    async def open(self, _wanted: Any) -> AsyncIterator[BuildSandbox]:
        if isinstance(self._error, QuotaExceeded):
            raise self._error
        if self._slow:
            self._slow -= 1
            raise CreateFailed("not within 30 s")
        yield BuildSandbox("id", Guest(self._error))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "slow", "says"),
    [
        (PlatformError("no connection"), 0, "not seen to be ready: no connection"),
        (PlatformError("no connection"), 1, "not seen to be ready: no connection"),
        (PlatformError("no connection"), 2, "the sandbox of the build was not made: not within 30 s"),
        (SandboxGone("id"), 0, "not seen to be ready"),
        (QuotaExceeded("the team has 1 sandbox"), 0, "the sandbox of the build was not made: the team has 1"),
    ],
)
async def test_a_ready_command_that_cannot_be_asked_is_not_ready_and_a_slow_start_is_tried_twice(
    tmp_path: Path, error: Exception, slow: int, says: str
) -> None:
    named: list[tuple[str, ...]] = []

    async def on_image(images: tuple[str, ...]) -> None:
        named.append(images)

    builder: Any = TemplateBuilder(Sandboxes(error, slow), None, None)  # type: ignore[arg-type]
    order = BuildOrder(None, "team", "template", BASE, (), Limits(), "start", "ready")  # type: ignore[arg-type]
    log = BuildLog(tmp_path / "log", lambda: datetime.now(UTC))
    with pytest.raises(StepFailed, match=says) as failed:
        await builder.build(order, log, on_image)
    assert failed.value.step == "finalize"
    assert named[0] == ("a" * 40,)
    log.close()
