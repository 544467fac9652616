"""`atoll run`: one thing in a throw-away sandbox, through the public SDK, with its output and its exit code.

Where it runs: the service that the environment names (E2B_API_KEY), else the server of the data directory, else an
embedded platform that lives as long as the command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO, TypeVar

from atoll.cli import running
from atoll.cli.environment import client_environ
from atoll.config import Settings
from atoll.model.errors import PlatformError

if TYPE_CHECKING:
    from e2b import Sandbox

S = TypeVar("S", bound="Sandbox")

TIMED_OUT = 124
"""What `timeout(1)` returns."""

_MARGIN_S = 60
"""The sandbox outlives the command by this at most, should nobody be left to end it."""


def run(settings: Settings, code: str, *, python: bool, template: str | None, timeout_s: float) -> int:
    """Runs `code` and returns its exit code; 124 when it took longer than `timeout_s`. Raises PlatformError."""
    from e2b import SandboxException

    with platform_environ(settings):
        try:
            return (_python if python else _shell)(code, template, timeout_s)
        except SandboxException as error:
            raise PlatformError(str(error)) from error


def check_lasting(settings: Settings, *, embedded: bool = False) -> None:
    """Raises PlatformError where `platform_environ` gives a platform that ends with this command."""
    if embedded or not (os.environ.get("E2B_API_KEY") or running.find(settings.data_dir) is not None):
        raise PlatformError(
            "checkpoints need a platform that outlives this command", hint="run `atoll serve`, or set E2B_API_KEY"
        )


@contextmanager
def platform_environ(settings: Settings, *, embedded: bool = False) -> Iterator[None]:
    """Within the block the SDK's variables in `os.environ` name a platform."""
    if os.environ.get("E2B_API_KEY") and not embedded:
        yield
        return
    if not embedded and running.find(settings.data_dir) is not None:
        with temporary_environ(client_environ(settings)):
            yield
        return
    from atoll.runtime.sandbox.embedded import EmbeddedPlatform

    environ = {**os.environ, "ATOLL_DATA_DIR": str(settings.data_dir)}
    with EmbeddedPlatform(environ) as platform, temporary_environ(platform.environ):
        yield


def ensure(template: str | None) -> None:
    """From now on a sandbox of `template` can be made without waiting. Raises SandboxException."""
    from e2b import Sandbox

    created(Sandbox, template, timeout_s=0).kill()


def created(kind: type[S], template: str | None, timeout_s: float) -> S:
    """A sandbox that outlives `timeout_s` a little; how far its template is goes to standard error."""
    from atoll.runtime.sandbox.waiting import once_built

    return once_built(
        lambda: kind.create(template, timeout=int(timeout_s) + _MARGIN_S, retries=0),
        lambda note: print(f"atoll: {note}", file=sys.stderr),
    )


@contextmanager
def temporary_environ(more: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _shell(code: str, template: str | None, timeout_s: float) -> int:
    from e2b import CommandExitException, Sandbox, TimeoutException

    with created(Sandbox, template, timeout_s) as sandbox:
        try:
            sandbox.commands.run(
                code,
                timeout=timeout_s,
                request_timeout=0,
                on_stdout=to_stream(sys.stdout),
                on_stderr=to_stream(sys.stderr),
            )
        except CommandExitException as result:
            return result.exit_code
        except TimeoutException:
            print(f"atoll: ended after {timeout_s:g} s", file=sys.stderr)
            return TIMED_OUT
    return 0


def _python(code: str, template: str | None, timeout_s: float) -> int:
    from e2b import TimeoutException
    from e2b_code_interpreter import Sandbox

    with created(Sandbox, template, timeout_s) as sandbox:
        try:
            execution = sandbox.run_code(
                code,
                timeout=timeout_s,
                on_stdout=lambda message: to_stream(sys.stdout)(message.line),
                on_stderr=lambda message: to_stream(sys.stderr)(message.line),
            )
        except TimeoutException:
            print(f"atoll: ended after {timeout_s:g} s", file=sys.stderr)
            return TIMED_OUT
    for result in execution.results:
        if result.text is not None:
            print(result.text)
    if execution.error is not None:
        print(execution.error.traceback, file=sys.stderr)
        return 1
    return 0


def to_stream(stream: TextIO) -> Callable[[str], None]:
    """A callback that writes at once to one of the process's own streams."""

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write
