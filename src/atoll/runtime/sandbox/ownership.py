"""The sandbox of a session: made or found at connect, and ended, kept or left at close, as the configuration says."""

from __future__ import annotations

from contextlib import suppress

from atoll.runtime.config import SandboxConfig
from atoll.runtime.errors import LOST, AgentRuntimeDisconnectedError
from atoll.runtime.options import sandbox_options
from atoll.runtime.sandbox.box import SID_KEY, E2BBox, connection_of, find_sandboxes
from atoll.runtime.sandbox.embedded import connection
from atoll.runtime.sandbox.lease import LEASE_S


class SandboxOwnership:
    """`attach`: the session's sandbox was made by another runtime, to which it belongs.

    Args:
        template: its name; None: what the configuration says.
        user: whose processes the box starts; None: the template's user.
    """

    def __init__(
        self, sid: str, settings: SandboxConfig, template: str | None, user: str | None, *, attach: bool
    ) -> None:
        self._sid = sid
        self._settings = settings
        self._template = template
        self._user = user
        self._attach = attach

    def open(self) -> E2BBox:
        """Raises AgentRuntimeDisconnectedError: there is none to attach to; and what E2BBox raises."""
        return self._find() if self._attach else self._create()

    def undo(self, box: E2BBox) -> None:
        """After a failed connect: one that was made for it is ended. Never raises."""
        with suppress(Exception):
            if self._attach:
                box.release(seconds=LEASE_S, pause=False)
            else:
                box.close()

    @property
    def is_kept(self) -> bool:
        """Whether the sandbox outlives this runtime."""
        return not self._settings.rm_all_containers and (self._attach or self._settings.keep_runtime_alive)

    def end(self, box: E2BBox) -> None:
        """At close: ends it, or leaves it for the next runtime (`is_kept`) with a time after which it ends."""
        settings = self._settings
        if self.is_kept:
            pause = not self._attach and settings.pause_closed_runtimes
            box.release(seconds=max(1, settings.close_delay), pause=pause)
        else:
            box.close()
            if settings.rm_all_containers:
                delete_sandboxes(self._sid)

    def _create(self) -> E2BBox:
        return E2BBox(self._settings, template=self._template, metadata={SID_KEY: self._sid}, user=self._user)

    def _find(self) -> E2BBox:
        try:
            found = find_sandboxes(self._sid, connection_of(sandbox_options(self._settings, self._template)))
        except LOST as error:
            raise AgentRuntimeDisconnectedError(f"the sandbox of session {self._sid!r} is gone: {error}") from error
        if not found:
            raise AgentRuntimeDisconnectedError(f"there is no sandbox for session {self._sid!r}")
        return E2BBox(self._settings, found[0], template=self._template, user=self._user)


def delete_sandboxes(sid: str) -> None:
    """Ends every sandbox of that session, whichever process made it. Nothing happens if there is none."""
    from e2b_code_interpreter import Sandbox

    params = connection()
    for sandbox_id in find_sandboxes(sid, params):
        Sandbox.kill(sandbox_id, **params)
