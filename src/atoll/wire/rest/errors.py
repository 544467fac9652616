"""The one table from Atoll's errors to E2B's REST error body `{"code": int, "message": str, "error_code"?: str}`.

The SDKs look at the status alone to choose an exception class (401, 404, 409, 429, 503), and retry 429, 502, 503 and
504 by themselves: nothing permanent may answer with one of the last three, and a full quota says `Should-Retry: false`.
A test checks that every class of the tree has an entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from atoll.model import errors as e
from atoll.wire.rest.base import Out


class Error(Out):
    """Every error's body, for the interface's document."""

    code: int
    message: str
    error_code: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """`error_code` is E2B's machine-readable word where there is one, else ours."""

    status: int
    error_code: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """A finished answer: JSON bytes."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


TABLE: dict[type[e.AtollError], Entry] = {
    e.AtollError: Entry(500, "internal_server_error"),
    e.CallerError: Entry(400, "bad_request"),
    e.InvalidRequest: Entry(400, "invalid_request"),
    e.Unauthorized: Entry(401, "unauthorized"),
    e.Forbidden: Entry(403, "forbidden"),
    e.NotFound: Entry(404, "not_found"),
    e.SandboxNotFound: Entry(404, "sandbox_not_found"),
    e.TemplateNotFound: Entry(404, "template_not_found"),
    e.Conflict: Entry(409, "conflict"),
    # E2B's word: the SDKs raise GuestUnresponsiveException, whose advice is `on_resume="reboot"`.
    e.MemoryLost: Entry(409, "sandbox_snapshot_guest_agent_unresponsive"),
    e.QuotaExceeded: Entry(429, "quota_exceeded", {"Should-Retry": "false"}),
    e.RateExceeded: Entry(429, "rate_limited", {"Retry-After": "1"}),
    e.NotOffered: Entry(400, "not_offered"),
    e.SandboxGone: Entry(404, "sandbox_not_found"),
    e.PortClosed: Entry(502, "port_not_open"),
    e.PlatformError: Entry(500, "internal_server_error"),
    e.CreateFailed: Entry(500, "sandbox_create_failed"),
    e.GuestUnresponsive: Entry(503, "guest_unresponsive", {"Should-Retry": "false"}),
    e.BuildFailed: Entry(500, "build_failed"),
    e.NodeUnreachable: Entry(500, "node_unreachable"),
    # Past the time-out that the SDKs have by themselves, so that they show the message instead of waiting once more.
    e.TemplateNotReady: Entry(503, "template_not_ready", {"Retry-After": "15"}),
    e.StateLost: Entry(500, "state_lost"),
    e.StorageFull: Entry(507, "storage_full"),
    e.BackendUnavailable: Entry(500, "isolation_unavailable"),
}


def error_reply(error: BaseException) -> ErrorReply:
    """For anything that was raised. What is not ours becomes an internal error, without its text."""
    if not isinstance(error, e.AtollError):
        return plain_error(500, "internal error; the server's log has the details", "internal_server_error")
    entry = next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)
    return plain_error(entry.status, str(error), entry.error_code, entry.headers)


def plain_error(
    status: int, message: str, error_code: str | None = None, headers: Mapping[str, str] | None = None
) -> ErrorReply:
    """An error that has no class, such as an unknown path."""
    body: dict[str, object] = {"code": status, "message": message}
    if error_code is not None:
        body["error_code"] = error_code
    return ErrorReply(status, json.dumps(body).encode(), headers or {})
