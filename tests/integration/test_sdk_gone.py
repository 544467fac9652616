"""Sandboxes that end under their users: every call under way says so, and none takes it for a result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    CommandExitException,
    CommandResult,
    PtySize,
    Sandbox,
    SandboxException,
    TimeoutException,
)
from e2b_code_interpreter import Sandbox as Interpreter

END: dict[str, Callable[[Sandbox], object]] = {
    "killed": lambda sandbox: Sandbox.kill(sandbox.sandbox_id),
    "timed out": lambda sandbox: Sandbox.set_timeout(sandbox.sandbox_id, 0),
}


def _soon(action: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.7, action)
    timer.start()
    return timer


@pytest.mark.parametrize("end", END)
def test_a_sandbox_that_ends_during_a_command_is_never_a_command_result(create: Any, end: str) -> None:
    sandbox = create()
    _soon(lambda: END[end](sandbox))
    with pytest.raises(TimeoutException) as caught:
        sandbox.commands.run("echo started; sleep 86381", timeout=0)
    assert not isinstance(caught.value, CommandResult)
    assert not isinstance(caught.value, CommandExitException)


def test_a_background_command_learns_that_its_sandbox_is_gone(create: Any) -> None:
    sandbox = create()
    handle = sandbox.commands.run("sleep 86380", background=True, timeout=0)
    sandbox.kill()
    with pytest.raises(TimeoutException) as caught:
        handle.wait()
    assert not isinstance(caught.value, CommandExitException)


async def test_an_async_command_learns_that_its_sandbox_is_gone(server: Any) -> None:
    sandbox = await AsyncSandbox.create()
    handle = await sandbox.commands.run("sleep 86379", background=True, timeout=0)
    await sandbox.kill()
    with pytest.raises(TimeoutException) as caught:
        await handle.wait()
    assert not isinstance(caught.value, CommandExitException)


def test_a_terminal_learns_that_its_sandbox_is_gone(create: Any) -> None:
    sandbox = create()
    handle = sandbox.pty.create(PtySize(rows=24, cols=80), timeout=0)
    _soon(sandbox.kill)
    with pytest.raises(TimeoutException) as caught:
        handle.wait()
    assert not isinstance(caught.value, CommandExitException)


def test_a_cell_learns_that_its_sandbox_is_gone(server: Any, interpreter_template: Any) -> None:
    sandbox = Interpreter.create()
    sandbox.run_code("1")
    _soon(sandbox.kill)
    with pytest.raises(TimeoutException, match="killed"):
        sandbox.run_code("import time\ntime.sleep(86378)", timeout=0)


def test_an_upload_learns_that_its_sandbox_is_gone(create: Any) -> None:
    sandbox = create()

    def slow() -> Iterator[bytes]:
        for n in range(200):
            if n == 3:
                sandbox.kill()
            time.sleep(0.05)
            yield b"x" * 100_000

    with pytest.raises(TimeoutException):
        sandbox.files.write("up", slow())


def test_a_download_that_breaks_off_is_an_error_not_a_short_file(create: Any) -> None:
    sandbox = create()
    sandbox.commands.run("head -c 300000000 /dev/zero > big")
    stream = sandbox.files.read("big", format="stream")
    next(stream)
    sandbox.kill()
    with pytest.raises((httpx.HTTPError, SandboxException)):
        list(stream)
