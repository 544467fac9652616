"""Ending a sandbox on its node, tried a few times."""

from __future__ import annotations

import structlog

from atoll.control.clock import Clock
from atoll.model.errors import AtollError, PlatformError
from atoll.model.sandbox import EndReason
from atoll.model.seams import NodeClient

ATTEMPTS = 3
PAUSE_S = 1.0

_log = structlog.get_logger("atoll.control")


async def kill(node: NodeClient, sandbox_id: str, reason: EndReason, clock: Clock) -> None:
    """Returns when the node has freed all that the sandbox had. Raises PlatformError after ATTEMPTS."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            await node.kill(sandbox_id, reason)
            return
        except AtollError as error:
            _log.error("sandbox.kill_failed", sandbox_id=sandbox_id, attempt=attempt, error=str(error))
            if attempt == ATTEMPTS:
                raise PlatformError(f"sandbox {sandbox_id!r} could not be ended") from error
        await clock.sleep(PAUSE_S)
