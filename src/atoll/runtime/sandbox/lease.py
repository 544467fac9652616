"""Keeps a sandbox alive while its user lives: a short time-out, renewed from a thread. When its user ends, it ends.

The SDK's default would end a sandbox five minutes after its creation, in the middle of the agent's work; a long
time-out would leave it running (and, in a cloud, paid for) after a crash.
"""

from __future__ import annotations

import logging
import threading

from e2b import Sandbox

from atoll.runtime.errors import LOST

LEASE_S = 300
RENEW_S = 100.0

_log = logging.getLogger("atoll.runtime")


class Lease:
    """Renews the time-out of `sandbox` until `stop`."""

    def __init__(self, sandbox: Sandbox, *, lease_s: int = LEASE_S, renew_s: float = RENEW_S) -> None:
        self._sandbox = sandbox
        self._lease_s = lease_s
        self._renew_s = renew_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="atoll-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No renewal begins after this returns. Idempotent."""
        self._stopped.set()

    def _renew(self) -> None:
        while not self._stopped.wait(self._renew_s):
            try:
                self._sandbox.set_timeout(self._lease_s)
            except LOST:
                return
            except Exception as error:
                _log.warning("the sandbox's time-out could not be renewed, trying again: %s", error)
