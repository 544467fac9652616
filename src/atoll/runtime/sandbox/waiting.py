"""Making a sandbox where the platform may first have to build its template: it says so, and is asked again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from e2b import ServiceBusyException

from atoll.model.errors import BEING_BUILT

T = TypeVar("T")

PATIENCE_S = 3600.0
"""The largest built-in template takes minutes, on a slow machine with a slow mirror several times that."""
_PAUSE_S = 1.0


def once_built(create: Callable[[], T], report: Callable[[str], None]) -> T:
    """What `create` returns, which is called until its template is there; `report` gets how far the build is.

    Raises what `create` raises, also ServiceBusyException for a platform that is busy with anything else.
    """
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return create()
        except ServiceBusyException as error:
            if BEING_BUILT not in str(error) or time.monotonic() > until:
                raise
            report(str(error).rpartition(" - ")[2].partition(" (the build goes on")[0])
            time.sleep(_PAUSE_S)
