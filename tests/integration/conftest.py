"""Sandboxes for tests that drive a real server with the published SDKs. The server itself: `tests/conftest.py`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from e2b import AsyncSandbox, Sandbox
from e2b_code_interpreter import AsyncSandbox as AsyncInterpreter
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


@pytest_asyncio.fixture
async def async_interpreter(server: Any, interpreter_template: Any) -> AsyncIterator[AsyncInterpreter]:
    """A fresh sandbox of `code-interpreter-v1`, asynchronous SDK."""
    sandbox = await AsyncInterpreter.create(timeout=300)
    yield sandbox
    await sandbox.kill()
