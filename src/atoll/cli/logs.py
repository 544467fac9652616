"""Logging of the server process: structlog, one line per event, on standard error, secrets masked."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from atoll.model.errors import InvalidRequest

_SECRET_NAMES = re.compile(r"token|api_?key|secret|password|authorization|signature", re.I)
_SECRET_VALUES = re.compile(r"\be2b_[0-9a-f]{8,}\b|(?<=signature=)[^&\s]+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_MASK = "***"


def mask_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: hides values by their name, and keys, signatures and URL passwords wherever they stand."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _MASK if value and _SECRET_NAMES.search(name) else _SECRET_VALUES.sub(_MASK, value)
    return event


def configure(level: str, form: str) -> None:
    """Sets up structlog and the standard library's logging. Raises InvalidRequest for an unknown level or form."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise InvalidRequest(f"ATOLL_LOG_LEVEL must be debug, info, warning or error, not {level!r}")
    if form not in ("console", "json"):
        raise InvalidRequest(f"ATOLL_LOG_FORMAT must be console or json, not {form!r}")
    renderer: list[Any] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(sort_keys=False)]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_plain_traceback)]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            mask_secrets,
            *renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        stream=sys.stderr, level=max(number, logging.WARNING), format="%(levelname)s %(name)s %(message)s"
    )


def _plain_traceback(stream: Any, error: Any) -> None:
    structlog.dev.plain_traceback(stream, error)
