"""Logs of sandboxes: `GET …/logs`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime

from pydantic import Field

from atoll.model.logs import LogEntry as LogEntryModel
from atoll.wire.rest.base import Out


class LogLine(Out):
    timestamp: datetime
    line: str


class LogEntry(Out):
    timestamp: datetime
    level: str
    message: str
    fields: dict[str, str]


class SandboxLogs(Out):
    """GET /sandboxes/{id}/logs."""

    logs: list[LogLine]
    log_entries: list[LogEntry] = Field(serialization_alias="logEntries")


class SandboxLogsV2(Out):
    """GET /v2/sandboxes/{id}/logs."""

    logs: list[LogEntry]


def log_entry(entry: LogEntryModel) -> LogEntry:
    """One entry."""
    return LogEntry(timestamp=entry.at, level=entry.level.value, message=entry.message, fields=dict(entry.fields))


def logs(entries: Sequence[LogEntryModel]) -> SandboxLogs:
    """v1: each entry twice, for readers of lines and of entries."""
    lines = [
        LogLine(
            timestamp=entry.at,
            line=json.dumps({**entry.fields, "level": entry.level.value, "message": entry.message}, ensure_ascii=False),
        )
        for entry in entries
    ]
    return SandboxLogs(logs=lines, log_entries=[log_entry(entry) for entry in entries])
