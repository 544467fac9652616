"""What a sandbox logs: its processes' starts, output and ends, and the guest's own words. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class LogLevel(StrEnum):
    """E2B's four levels, lowest first."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"

    def reaches(self, minimum: LogLevel) -> bool:
        """Is this level `minimum` or above?"""
        return _ORDER.index(self) >= _ORDER.index(minimum)


_ORDER = (LogLevel.DEBUG, LogLevel.INFO, LogLevel.WARN, LogLevel.ERROR)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry. `number` counts a sandbox's entries from 1, so that none is kept twice."""

    number: int
    at: datetime
    level: LogLevel
    message: str
    fields: Mapping[str, str] = field(default_factory=dict)
