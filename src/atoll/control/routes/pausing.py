"""Sandboxes that pause and run again: pause, connect, resume. v1 (older SDKs, the CLI) and v2 forms side by side."""

from __future__ import annotations

from fastapi import APIRouter, Response

from atoll.control.routes import ordering
from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, no_content, reply
from atoll.control.sandboxes.pausing import Connected
from atoll.control.services import Services
from atoll.model.sandbox import PauseMode
from atoll.wire.rest import sandboxes as rest

router = APIRouter(tags=["sandboxes"])

_EITHER = {200: {"model": rest.Sandbox}, 201: {"model": rest.Sandbox}, **FAILURES}
_MADE = {201: {"model": rest.Sandbox}, **FAILURES}


@router.post("/sandboxes/{sandbox_id}/pause", status_code=204, responses=FAILURES)
async def pause(
    sandbox_id: str, services: ServicesHere, caller: CallerHere, body: rest.PauseRequest | None = None
) -> Response:
    """With its memory unless `memory` is false. 409: it is paused already; 503: its guest does not answer."""
    asked = body or rest.PauseRequest()
    mode = PauseMode.FILESYSTEM if asked.memory is False else PauseMode.MEMORY
    await services.pausing.pause(caller, sandbox_id, mode, strict=bool(asked.require_healthy_guest))
    return no_content()


@router.post("/v2/sandboxes/{sandbox_id}/connect", responses=_EITHER)
async def connect_v2(
    sandbox_id: str, services: ServicesHere, caller: CallerHere, body: rest.ConnectSandboxV2 | None = None
) -> Response:
    """Its addresses and tokens. 200: it runs, its life is prolonged, never shortened; 201: it was paused and runs."""
    asked = body or rest.ConnectSandboxV2()
    timeout = asked.timeout if asked.timeout is not None else rest.V2_TIMEOUT_S
    return _reply(services, await services.pausing.connect(caller, sandbox_id, timeout, reboot=asked.memory is False))


@router.post("/sandboxes/{sandbox_id}/connect", responses=_EITHER)
async def connect_v1(
    sandbox_id: str, body: rest.ConnectSandbox, services: ServicesHere, caller: CallerHere
) -> Response:
    """As v2; the timeout is required."""
    reboot = body.memory is False
    return _reply(services, await services.pausing.connect(caller, sandbox_id, body.timeout, reboot=reboot))


@router.post("/sandboxes/{sandbox_id}/resume", status_code=201, responses=_MADE)
async def resume(
    sandbox_id: str, services: ServicesHere, caller: CallerHere, body: rest.ResumedSandbox | None = None
) -> Response:
    """409 for one that runs."""
    asked = body or rest.ResumedSandbox()
    timeout = asked.timeout if asked.timeout is not None else rest.V1_TIMEOUT_S
    reboot, auto_pause = asked.memory is False, asked.auto_pause
    found = await services.pausing.connect(caller, sandbox_id, timeout, reboot=reboot, auto_pause=auto_pause)
    if not found.resumed:
        raise ordering.already_running(found.record)
    return _reply(services, found)


def _reply(services: Services, found: Connected) -> Response:
    body = rest.sandbox(found.record, services.policy.domain, services.sandboxes.unenforced(found.record))
    return reply(body, 201 if found.resumed else 200)
