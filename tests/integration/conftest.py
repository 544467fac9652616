"""Sandboxes for tests that drive a real server with the published SDKs. The server itself: `tests/conftest.py`."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from e2b import AsyncSandbox, Sandbox
from e2b_code_interpreter import AsyncSandbox as AsyncInterpreter
from e2b_code_interpreter import Execution
from e2b_code_interpreter import Sandbox as Interpreter


@pytest.fixture
def create(server: Any) -> Iterator[Callable[..., Sandbox]]:
    """`Sandbox.create` that kills what it made when the test ends."""
    made: list[Sandbox] = []

    def _create(*args: Any, **kwargs: Any) -> Sandbox:
        made.append(Sandbox.create(*args, **kwargs))
        return made[-1]

    yield _create
    for sandbox in made:
        sandbox.kill()


@pytest.fixture
def sandbox(create: Callable[..., Sandbox]) -> Sandbox:
    """A fresh sandbox of the default template."""
    return create(timeout=300)


@pytest_asyncio.fixture
async def async_sandbox(server: Any) -> AsyncIterator[AsyncSandbox]:
    """A fresh sandbox of the default template, asynchronous SDK."""
    sandbox = await AsyncSandbox.create(timeout=300)
    yield sandbox
    await sandbox.kill()


@pytest.fixture
def interpreter(server: Any, interpreter_template: Any) -> Iterator[Interpreter]:
    """A fresh sandbox of `code-interpreter-v1`."""
    sandbox = Interpreter.create(timeout=300)
    yield sandbox
    sandbox.kill()


@pytest.fixture(scope="module")
def shared_interpreter(server: Any, interpreter_template: Any) -> Iterator[Interpreter]:
    """One sandbox of `code-interpreter-v1` for tests that leave nothing behind that another could notice."""
    sandbox = Interpreter.create(timeout=900)
    yield sandbox
    sandbox.kill()


@pytest.fixture
def run(shared_interpreter: Interpreter) -> Iterator[Callable[..., Execution]]:
    """Runs code in a fresh Python context of the shared sandbox: nothing of one test is seen by another."""
    context = shared_interpreter.create_code_context()
    yield lambda code, **options: shared_interpreter.run_code(code, context=context, **options)
    shared_interpreter.remove_code_context(context)


@pytest_asyncio.fixture
async def async_interpreter(server: Any, interpreter_template: Any) -> AsyncIterator[AsyncInterpreter]:
    """A fresh sandbox of `code-interpreter-v1`, asynchronous SDK."""
    sandbox = await AsyncInterpreter.create(timeout=300)
    yield sandbox
    await sandbox.kill()


class Restartable:
    """A server on a data directory of its own that a test may kill and start again, as a machine's owner would."""

    def __init__(
        self, make: Callable[..., Any], data_dir: Path, environ: Mapping[str, str], options: Sequence[str]
    ) -> None:
        self._make = make
        self._more = {"environ": environ, "options": options}
        self.data_dir = data_dir
        self._current = make(data_dir, **self._more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._current, name)

    def start(self) -> None:
        """A new server on the same data directory; its URL may be another."""
        self._current = self._make(self.data_dir, **self._more)

    def kill(self) -> None:
        """SIGKILL: no chance to clean up."""
        self._current.stop(signal.SIGKILL)

    def clear(self) -> None:
        """Ends whatever still lives on this data directory."""
        self._current.stop()
        with suppress(Exception):
            self._make(self.data_dir, environ=self._more["environ"], options=["--end-sandboxes"]).stop()


@pytest.fixture
def start_server(make_server: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Restartable]]:
    """Servers of a test's own: `start_server(environ={…}, options=[…])`. Their sandboxes end with the test."""
    started: list[Restartable] = []

    def start(environ: Mapping[str, str] | None = None, options: Sequence[str] = ()) -> Restartable:
        data_dir = tmp_path / f"own-{len(started)}"
        started.append(Restartable(make_server, data_dir, environ or {}, options))
        return started[-1]

    yield start
    for server in started:
        server.clear()
