"""What the handlers share: who asks, the services, decoded path parameters, finished answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import Depends, Request, Response
from pydantic import BaseModel

from atoll.control.access.auth import Caller
from atoll.control.services import Services
from atoll.wire.rest.errors import Error

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text}
    for status, text in ((400, "Bad request"), (401, "No or wrong API key"), (404, "Not found"), (409, "Conflict"))
}
"""For the interface's document: what any route may answer besides success."""


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


ServicesHere = Annotated[Services, Depends(_services)]
CallerHere = Annotated[Caller, Depends(_caller)]


def note_made(request: Request, **ids: str) -> None:
    """For the audit log: what the request has made, which its path does not say."""
    request.state.made = ids


def decoded(segment: str) -> str:
    """A path parameter; paths are routed undecoded (see `gate`)."""
    return unquote(segment)


def reply(
    model: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None, *, keep_nulls: bool = False
) -> Response:
    """A model as JSON, serialised once (a `response_model` would validate it again)."""
    body = model.model_dump_json(by_alias=True, exclude_none=not keep_nulls)
    return Response(body, status, headers=headers, media_type="application/json")


def reply_list(
    models: list[Any], headers: Mapping[str, str] | None = None, *, status: int = 200, keep_nulls: bool = False
) -> Response:
    """A JSON array of models."""
    body = ",".join(model.model_dump_json(by_alias=True, exclude_none=not keep_nulls) for model in models)
    return Response(f"[{body}]", status, headers=headers, media_type="application/json")


def no_content() -> Response:
    """204."""
    return Response(status_code=204)
