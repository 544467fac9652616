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
from atoll.model.errors import PlatformError, QuotaExceeded, SandboxGone
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
    def __init__(self, error: Exception) -> None:
        self._error = error

    @asynccontextmanager
    async def open(self, _wanted: Any) -> AsyncIterator[BuildSandbox]:
        if isinstance(self._error, QuotaExceeded):
            raise self._error
        yield BuildSandbox("id", Guest(self._error))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PlatformError("no connection"), "not seen to be ready: no connection"),
        (SandboxGone("id"), "not seen to be ready"),
        (QuotaExceeded("the team has 1 sandbox"), "the sandbox of the build was not made: the team has 1"),
    ],
)
async def test_a_ready_command_that_cannot_be_asked_is_not_ready(tmp_path: Path, error: Exception, says: str) -> None:
    named: list[tuple[str, ...]] = []

    async def on_image(images: tuple[str, ...]) -> None:
        named.append(images)

    builder: Any = TemplateBuilder(Sandboxes(error), None, None)  # type: ignore[arg-type]
    order = BuildOrder(None, "team", "template", BASE, (), Limits(), "start", "ready")  # type: ignore[arg-type]
    log = BuildLog(tmp_path / "log", lambda: datetime.now(UTC))
    with pytest.raises(StepFailed, match=says) as failed:
        await builder.build(order, log, on_image)
    assert failed.value.step == "finalize"
    assert named[0] == ("a" * 40,)
    log.close()
