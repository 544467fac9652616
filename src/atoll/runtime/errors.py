"""What the agent runtime raises. The names are OpenHands', so that code written for it reads the same.

    AgentRuntimeError
    ├── MalformedEvent                    an event's JSON cannot be understood; the message says which part
    ├── AgentRuntimeTimeoutError          an operation of the runtime itself took too long
    └── AgentRuntimeUnavailableError      there is nothing to talk to
        ├── AgentRuntimeNotReadyError     connect() was not called, or has not finished
        ├── AgentRuntimeDisconnectedError the sandbox was there and is lost: never turned into a command's result
        └── AgentRuntimeNotFoundError     no sandbox for that session

A command that fails, a file that is missing, an edit that does not fit are observations, not exceptions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from e2b.exceptions import SandboxNotFoundException, SandboxNotRunningException, SandboxUnreachableException

from atoll.model.errors import AtollError


class AgentRuntimeError(AtollError):
    """Base of the runtime's own errors."""


class MalformedEvent(AgentRuntimeError):
    """An event's JSON cannot be understood."""


class AgentRuntimeTimeoutError(AgentRuntimeError):
    """The runtime itself (not the agent's command) took too long."""


class AgentRuntimeUnavailableError(AgentRuntimeError):
    """There is no sandbox to act in."""


class AgentRuntimeNotReadyError(AgentRuntimeUnavailableError):
    """The runtime is not connected."""


class AgentRuntimeDisconnectedError(AgentRuntimeUnavailableError):
    """The sandbox was there and is lost."""


class AgentRuntimeNotFoundError(AgentRuntimeUnavailableError):
    """No sandbox exists for that session."""


LOST = (SandboxNotRunningException, SandboxUnreachableException, SandboxNotFoundException)
"""The SDK's exceptions that mean: this sandbox is gone or cannot be reached."""


@contextmanager
def lost_sandbox_raises() -> Iterator[None]:
    """Turns the SDK's words for a lost sandbox into AgentRuntimeDisconnectedError and leaves everything else alone."""
    try:
        yield
    except LOST as error:
        raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error
