"""The code interpreter's HTTP interface (port 49999), as E2B's SDKs call it. Decodes, calls `contexts.py`, encodes.

    GET /health · POST /execute → lines · GET, POST /contexts · DELETE /contexts/{id} · POST /contexts/{id}/restart

Errors that the caller can mend are plain text (the SDKs show the body as it is); what goes wrong after the stream has
begun is a line of the stream. The SDKs send the sandbox's access token with /execute alone.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping
from typing import Any

from atoll.guest.errors import GuestError
from atoll.guest.interpreter import contexts, kernelspecs
from atoll.guest.interpreter.contexts import Contexts, TooManyContexts, UnknownContext, UnknownLanguage
from atoll.guest.interpreter.kernel import CwdMissing, KernelStartFailed
from atoll.guest.pid1.reaper import Reaper
from atoll.guest.state import GuestState
from atoll.http1.server import Request, Response
from atoll.wire.envd.connect import ConnectError

MAX_BODY = 32 * 1024 * 1024

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Refused(GuestError):
    """An answer other than 2xx."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Interpreter:
    """Serves port 49999: `handle` is the HTTP handler. Call `start` where the template has a kernel."""

    def __init__(self, state: GuestState, reaper: Reaper, runtime_dir: str = contexts.RUNTIME_DIR) -> None:
        self._state = state
        self.contexts = Contexts(state, reaper, runtime_dir)

    def start(self) -> None:
        """Makes the default contexts, in the background. Call it on the running loop."""
        self.contexts.warm_up()

    async def handle(self, request: Request) -> Response:
        """Answers any request; never raises for what a client sent."""
        try:
            return await self._route(request)
        except _Refused as error:
            return _text(error.status, error.message)
        except UnknownContext as error:
            return _text(404, f"Context {error} not found")
        except (UnknownLanguage, CwdMissing, ConnectError) as error:
            return _text(400, error.message if isinstance(error, ConnectError) else str(error))
        except TooManyContexts as error:
            return _text(429, str(error))
        except KernelStartFailed as error:
            return _text(500, str(error))

    async def _route(self, request: Request) -> Response:
        match (request.method, request.path.strip("/").split("/")):
            case ("GET" | "HEAD", ["health"]):
                trouble = self.contexts.trouble()
                return _text(503, trouble) if trouble else _text(200, "OK")
            case ("POST", ["execute"]):
                return await self._execute(request)
            case ("GET", ["contexts"]):
                return Response.json([context.describe() for context in self.contexts.all()])
            case ("POST", ["contexts"]):
                return await self._make(request)
            case ("DELETE", ["contexts", context_id]):
                self.contexts.remove(context_id)
                return Response(204)
            case ("POST", ["contexts", context_id, "restart"]):
                await self.contexts.find(context_id).restart()
                return Response(204)
            case (_, ["health"] | ["execute"] | ["contexts"] | ["contexts", _] | ["contexts", _, "restart"]):
                raise _Refused(405, f"{request.method} is not offered on {request.path[:256]}")
        raise _Refused(404, f"no such path: {request.path[:256]}")

    async def _execute(self, request: Request) -> Response:
        self._check_token(request)
        self.contexts.in_use = True
        body = await _json_object(request)
        code, context_id, language = body.get("code"), body.get("context_id"), body.get("language")
        if not isinstance(code, str):
            raise _Refused(400, "`code` must be a string")
        if context_id and language:
            raise _Refused(400, "Only one of context_id or language can be provided")
        env = _variables(body.get("env_vars"))
        if context_id:
            context = self.contexts.find(_optional_text("context_id", context_id) or "")
        else:
            name = kernelspecs.language_name(_optional_text("language", language))
            context = self.contexts.default_for(name)
        headers = (("content-type", "application/x-ndjson"), ("cache-control", "no-store"))
        return Response(200, headers, context.execute(code, env))

    async def _make(self, request: Request) -> Response:
        self.contexts.in_use = True
        body = await _json_object(request)
        language = kernelspecs.language_name(_optional_text("language", body.get("language")))
        context = self.contexts.make(language, _optional_text("cwd", body.get("cwd")))
        try:
            await context.warm_up()
        except CwdMissing as error:
            self._forget(context.id)
            raise _Refused(400, f"cwd {context.cwd!r} cannot be used: {error}") from error
        except BaseException:
            # The kernel did not start, or the client has gone and will never learn the id.
            self._forget(context.id)
            raise
        return Response.json(context.describe())

    def _forget(self, context_id: str) -> None:
        try:
            self.contexts.remove(context_id)
        except UnknownContext:
            return

    def _check_token(self, request: Request) -> None:
        token = self._state.access_token
        given = request.headers.get("x-access-token") or ""
        if token is not None and not hmac.compare_digest(given.encode("latin-1", "replace"), token.encode()):
            raise _Refused(401, "the sandbox's access token is missing or wrong (header X-Access-Token)")


async def _json_object(request: Request) -> Mapping[str, Any]:
    try:
        body = json.loads(await request.body.read(MAX_BODY) or b"{}")
    except (ValueError, RecursionError) as error:
        raise _Refused(400, f"malformed JSON: {error}") from error
    if not isinstance(body, dict):
        raise _Refused(400, "the body must be a JSON object")
    return body


def _optional_text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _Refused(400, f"`{name}` must be a string")
    if value and "\0" in value:
        raise _Refused(400, f"`{name}` holds a NUL character")
    return value or None


def _variables(given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise _Refused(400, "`env_vars` must map names to strings")
    for name, value in given.items():
        if not _VARIABLE.fullmatch(name) or "\0" in value:
            raise _Refused(400, f"`env_vars` has a name or value that cannot be set: {name[:100]!r}")
    return given


def _text(status: int, message: str) -> Response:
    return Response(status, (("content-type", "text/plain; charset=utf-8"),), message.encode("utf-8", "replace"))
