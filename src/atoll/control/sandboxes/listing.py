"""Filters, order and pages of a list of sandboxes: pure.

A page token is the position after the last item: base64url of `<started_at in µs>:<sandbox id>`. It holds no secret and
survives sandboxes that come and go between two pages.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from urllib.parse import parse_qsl, unquote

from atoll.model.errors import InvalidRequest
from atoll.model.lifecycle import shown_state
from atoll.model.sandbox import SANDBOX_ID, SandboxRecord, SandboxState

MAX_LIMIT = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

T = TypeVar("T")
Position = tuple[int, str]


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What GET /v2/sandboxes asks. `after` is the position that the page token stands for."""

    states: frozenset[SandboxState] = frozenset({SandboxState.RUNNING, SandboxState.PAUSED})
    metadata: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    started_after: datetime | None = None
    ascending: bool = False
    limit: int = MAX_LIMIT
    after: Position | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """`next_token` is None on the last page. `total_running` counts all pages."""

    items: Sequence[SandboxRecord]
    next_token: str | None
    total_running: int


def select_page(records: Sequence[SandboxRecord], query: ListQuery) -> Page:
    """The page of `query` out of all of a team's live sandboxes."""
    matching = sorted((one for one in records if _matches(one, query)), key=_position, reverse=not query.ascending)
    total = sum(shown_state(one) is SandboxState.RUNNING for one in matching)
    after = query.after
    if after is not None:
        matching = [one for one in matching if (_position(one) > after) == query.ascending and _position(one) != after]
    items = matching[: query.limit]
    more = len(matching) > len(items)
    return Page(items, page_token(_position(items[-1])) if more and items else None, total)


def page_token(position: Position) -> str:
    """See the module."""
    return base64.urlsafe_b64encode(f"{position[0]}:{position[1]}".encode()).decode().rstrip("=")


def parse_page_token(token: str) -> Position:
    """Raises InvalidRequest."""
    try:
        text = base64.b64decode(token.encode() + b"=" * (-len(token) % 4), altchars=b"-_", validate=True).decode()
        micros, _, sandbox_id = text.partition(":")
        if len(token) > 200 or not SANDBOX_ID.fullmatch(sandbox_id):
            raise ValueError(token)
        return int(micros), sandbox_id
    except (ValueError, binascii.Error) as error:
        raise InvalidRequest(
            "nextToken is not one that this server gave", hint="start again from the first page"
        ) from error


def slice_page(items: Sequence[T], limit: int, offset: int) -> tuple[Sequence[T], str | None]:
    """A page of a list that hardly changes, and the token of the next one, which is its offset."""
    end = offset + limit
    return items[offset:end], str(end) if end < len(items) else None


def parse_offset_token(token: str | None) -> int:
    """Raises InvalidRequest."""
    if not token:
        return 0
    if not (token.isascii() and token.isdigit()) or len(token) > 9:
        raise InvalidRequest("nextToken is not one that this server gave", hint="start again from the first page")
    return int(token)


def parse_metadata(text: str | None) -> dict[str, str]:
    """`user=abc&app=prod`, keys and values encoded twice by the SDKs: once each, once for the query string.

    The query string's own layer is gone when this is called. Raises InvalidRequest.
    """
    if not text:
        return {}
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=64)
    except ValueError as error:
        raise InvalidRequest("metadata must be `key=value&key=value`, keys and values URL-encoded") from error
    return {unquote(key): unquote(value) for key, value in pairs}


def _position(record: SandboxRecord) -> Position:
    return (record.started_at - _EPOCH) // _MICROSECOND, record.sandbox_id


def _matches(record: SandboxRecord, query: ListQuery) -> bool:
    if shown_state(record) not in query.states:
        return False
    if query.template is not None and query.template not in (record.template_id, record.template_alias):
        return False
    if query.started_after is not None and record.started_at < query.started_after:
        return False
    return all(record.metadata.get(key) == value for key, value in query.metadata.items())
