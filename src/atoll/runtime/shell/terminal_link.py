"""A terminal in the sandbox through the public SDK's `pty`: what `shell.py` calls a TerminalLink.

Owns the event stream of the terminal, and coming back to it when a connection broke while the sandbox lives on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from e2b import CommandExitException, NotFoundException, PtySize, Sandbox, SandboxException
from e2b.exceptions import InvalidArgumentException

from atoll.runtime.errors import LOST, AgentRuntimeDisconnectedError, lost_sandbox_raises

SIZE = PtySize(rows=50, cols=1000)
"""Wide, so that `ps` and `ls` cut nothing off."""
RECONNECT_S, FIRST_PAUSE_S, REQUEST_S = 20.0, 0.1, 10.0
"""A server that is restarted is away for seconds; a sandbox that ended is reported at once."""


class SandboxTerminal:
    """One login bash of `user` on a terminal, `bare` without that user's start-up files.

    Raises ValueError if it cannot start in `cwd`.
    """

    def __init__(
        self, sandbox: Sandbox, *, user: str | None, cwd: str | None, envs: Mapping[str, str], bare: bool = False
    ) -> None:
        self._sandbox = sandbox
        envs = {**envs, "HOME": "/nonexistent"} if bare else envs
        with lost_sandbox_raises():
            try:
                self._handle = sandbox.pty.create(SIZE, user=user, cwd=cwd, envs=dict(envs), timeout=0)
            except (NotFoundException, InvalidArgumentException) as error:
                raise ValueError(f"a shell cannot start in {cwd!r}: {error}") from error
        self._pid = self._handle.pid

    def send(self, data: bytes) -> None:
        with lost_sandbox_raises():
            try:
                self._sandbox.pty.send_stdin(self._pid, data)
            except LOST:
                raise
            except NotFoundException:
                pass  # the shell has just ended; `follow` reports it

    def follow(self, feed: Callable[[bytes], None], broke: Callable[[], None]) -> int | None:
        while True:
            try:
                return self._handle.wait(on_pty=feed).exit_code
            except CommandExitException as ended:
                return ended.exit_code
            except Exception as error:
                if not self._connect_again(error):
                    return None
            broke()

    def _connect_again(self, error: Exception) -> bool:
        """False: the shell ended meanwhile. Raises AgentRuntimeDisconnectedError: the sandbox did, or stays away."""
        until, pause_s = time.monotonic() + RECONNECT_S, FIRST_PAUSE_S
        while True:
            try:
                if not self._sandbox.is_running(request_timeout=REQUEST_S):
                    break
                self._handle = self._sandbox.pty.connect(self._pid, timeout=0, request_timeout=REQUEST_S)
                return True
            except LOST:
                break
            except NotFoundException:
                return False
            except Exception as again:
                error = again
            if time.monotonic() + pause_s > until:
                break
            time.sleep(pause_s)
            pause_s *= 2
        raise AgentRuntimeDisconnectedError(f"the sandbox is lost: {error}") from error

    def foreground(self) -> int | None:
        with lost_sandbox_raises():
            try:
                stat = self._sandbox.commands.run(f"cat /proc/{self._pid}/stat", user="root", timeout=10).stdout
                return int(stat.rpartition(")")[2].split()[5])  # tpgid, see proc(5)
            except LOST:
                raise
            except (SandboxException, ValueError, IndexError):
                return None

    def kill(self) -> None:
        try:
            self._sandbox.pty.kill(self._pid)
        except Exception:
            return  # whatever the reason, there is no shell to be ended any more
