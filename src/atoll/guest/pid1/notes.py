"""`POST /notes` (control port): a line of the host's for the sandbox's log, among the guest's own, in their order."""

from __future__ import annotations

import json

from atoll.guest.log import GuestLog
from atoll.http1.server import Handler, HttpError, Request, Response

_BODY_MAX = 16384
_LEVELS = frozenset({"debug", "info", "warn", "error"})


def handler(log: GuestLog) -> Handler:
    """204. A body `{"level", "message", "fields": {name: text}}`."""

    async def note(request: Request) -> Response:
        try:
            given = json.loads(await request.body.read(_BODY_MAX))
            level, message, fields = given["level"], given["message"], given["fields"]
            if level not in _LEVELS or not isinstance(message, str):
                raise ValueError("a level and a message")
            log.add(level, message, {str(name): str(value) for name, value in fields.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HttpError(400, f"malformed note: {error}") from error
        return Response(204)

    return note
