"""Time as control sees it. Passed in, so that a test can move it."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Wall time and waiting."""

    def now(self) -> datetime:
        """The time now, in UTC."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after that long on this clock."""
        ...


class SystemClock:
    """The machine's. `offset_file` says in seconds by how much it is off, where there is such a file: for tests."""

    def __init__(self, offset_file: Path | None = None) -> None:
        self._offset_file = offset_file

    def now(self) -> datetime:
        now = datetime.now(UTC)
        if self._offset_file is not None:
            with contextlib.suppress(OSError, ValueError, OverflowError):
                now += timedelta(seconds=float(self._offset_file.read_text()))
        return now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
