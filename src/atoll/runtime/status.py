"""The runtime's states, as OpenHands names them to its status callback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum

_log = logging.getLogger("atoll.runtime")


class RuntimeStatus(Enum):
    """What a status callback gets. There is no FAILED: an error during connect is ERROR and is raised as it is."""

    STOPPED = "STATUS$STOPPED"
    BUILDING_RUNTIME = "STATUS$BUILDING_RUNTIME"
    STARTING_RUNTIME = "STATUS$STARTING_RUNTIME"
    RUNTIME_STARTED = "STATUS$RUNTIME_STARTED"
    SETTING_UP_WORKSPACE = "STATUS$SETTING_UP_WORKSPACE"
    SETTING_UP_GIT_HOOKS = "STATUS$SETTING_UP_GIT_HOOKS"
    READY = "STATUS$READY"
    ERROR = "STATUS$ERROR"
    ERROR_RUNTIME_DISCONNECTED = "STATUS$ERROR_RUNTIME_DISCONNECTED"


StatusCallback = Callable[[str, RuntimeStatus, str], None]
"""(level, status, message)"""


class StatusReport:
    """The last status of a runtime; each new one goes to the callback too. A callback that fails is logged."""

    def __init__(self, callback: StatusCallback | None) -> None:
        self.callback = callback
        self.last: RuntimeStatus | None = None

    def set(self, status: RuntimeStatus, message: str = "", level: str = "info") -> None:
        """`level` is the logging level's name in lower case."""
        self.last = status
        if self.callback is not None:
            try:
                self.callback(level, status, message)
            except Exception:
                _log.exception("the status callback failed")
