"""One sandbox: what it is, how it does (metrics, logs, connections), its processes, and its terminals."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from atoll.console.gate import PREFIX
from atoll.console.routes.sandboxes import running
from atoll.console.view import allow_styles_of_scripts, caller, number, page, parts, to
from atoll.control.telemetry.log_query import LogQuery
from atoll.model.errors import InvalidRequest
from atoll.model.sandbox import SandboxState

_LINES = 300
_CONNECTIONS = 300
_PROCESSES = 500
_MAX_INPUT = 64 * 1024
"""Bytes that a terminal takes at once: more than anybody pastes by mistake."""
_SIZE = (80, 24)


async def show(request: Request) -> Response:
    """What it is and how it does."""
    services, sandbox_id = parts(request).services, request.path_params["id"]
    record = await services.sandboxes.get(caller(request), sandbox_id)
    return page(
        request,
        "sandbox.html",
        one=record,
        unenforced=services.sandboxes.unenforced(record),
        address=services.policy.domain,
    )


async def metrics(request: Request) -> Response:
    """Readings since it began, for the charts: Unix seconds, percent of one processor, bytes."""
    record, series = await parts(request).services.telemetry.metrics(caller(request), request.path_params["id"])
    readings = series.between(None, None)
    return JSONResponse(
        {
            "at": [round(one.at.timestamp(), 1) for one in readings],
            "cpu": [one.stats.cpu_used_pct for one in readings],
            "memory": [one.stats.memory_used for one in readings],
            "disk": [one.stats.disk_used for one in readings],
            "most": {
                "cpu": record.limits.cpu_count * 100,
                "memory": record.limits.memory_mib << 20,
                "disk": record.limits.disk_mib << 20,
            },
        }
    )


async def logs(request: Request) -> Response:
    """The newest lines of its log; also of one that has ended, as long as it is remembered."""
    services, sandbox_id = parts(request).services, request.path_params["id"]
    search = request.query_params.get("search", "")[:256]
    found = await services.telemetry.logs(
        caller(request), sandbox_id, LogQuery(backward=True, search=search, limit=_LINES)
    )
    record = await services.sandboxes.get_any(caller(request), sandbox_id)
    return page(request, "logs.html", one=record, entries=found, search=search, most=_LINES)


async def network(request: Request) -> Response:
    """What it may reach, and what it reached or tried to."""
    services, sandbox_id = parts(request).services, request.path_params["id"]
    record = await services.sandboxes.get(caller(request), sandbox_id)
    runs = record.state is SandboxState.RUNNING
    found = await services.network.connections(caller(request), sandbox_id) if runs else ()
    return page(request, "network.html", one=record, connections=list(reversed(found))[:_CONNECTIONS])


async def processes(request: Request) -> Response:
    """Those that clients have started."""
    record = await running(request)
    async with parts(request).guests(record.sandbox_id) as guest:
        found = await guest.processes()
    return page(request, "processes.html", one=record, processes=found[:_PROCESSES])


async def kill_process(request: Request) -> Response:
    """With all that it has started."""
    record = await running(request)
    async with parts(request).guests(record.sandbox_id) as guest:
        await guest.kill(_pid(request))
    return to(f"/sandboxes/{record.sandbox_id}/processes")


# Terminals


async def terminals(request: Request) -> Response:
    """The shells that run, those of SDKs too."""
    record = await running(request)
    async with parts(request).guests(record.sandbox_id) as guest:
        found = await guest.processes()
    return page(request, "terminals.html", one=record, shells=[one for one in found if one.is_shell][:_PROCESSES])


async def open_terminal(request: Request) -> Response:
    """A new shell."""
    record = await running(request)
    pid = await parts(request).terminals.open(record.team_id, record.sandbox_id, *_SIZE)
    return to(f"/sandboxes/{record.sandbox_id}/terminals/{pid}")


async def show_terminal(request: Request) -> Response:
    """A page that looks at one; loaded again it shows what was there."""
    record = await running(request)
    allow_styles_of_scripts(request)
    return page(request, "terminal.html", one=record, pid=_pid(request))


async def output(request: Request) -> Response:
    """What it wrote from the offset `from` on; waits until there is something. `X-Next` is the offset after it."""
    record = await running(request)
    offset = number(request.query_params.get("from", "0"), "from", most=10**11)
    seen = await parts(request).terminals.after(record.team_id, record.sandbox_id, _pid(request), offset)
    headers = {"X-Next": str(seen.next)}
    if seen.end is not None:
        headers["X-End"] = re.sub(r"[^ -~]", "?", seen.end)[:200]  # a sandbox may have chosen it
    return Response(seen.data, headers=headers, media_type="application/octet-stream")


async def keys(request: Request) -> Response:
    """Bytes as they were typed."""
    record = await running(request)
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > _MAX_INPUT:
            raise InvalidRequest(f"more than {_MAX_INPUT} bytes at once", hint="upload a file instead")
    async with parts(request).guests(record.sandbox_id) as guest:
        await guest.send(_pid(request), bytes(data))
    return Response(status_code=204)


async def resize(request: Request) -> Response:
    """To what the page has room for."""
    record = await running(request)
    cols, rows = (number(request.query_params.get(name, ""), name, 2, 500) for name in ("cols", "rows"))
    async with parts(request).guests(record.sandbox_id) as guest:
        await guest.resize(_pid(request), cols, rows)
    return Response(status_code=204)


def _pid(request: Request) -> int:
    return number(request.path_params["pid"], "the process id", 1)


_ONE = f"{PREFIX}/sandboxes/{{id}}"
_TERMINAL = f"{_ONE}/terminals/{{pid}}"
ROUTES = [
    Route(_ONE, show),
    Route(f"{_ONE}/metrics", metrics),
    Route(f"{_ONE}/logs", logs),
    Route(f"{_ONE}/network", network),
    Route(f"{_ONE}/processes", processes),
    Route(f"{_ONE}/processes/{{pid}}/kill", kill_process, methods=["POST"]),
    Route(f"{_ONE}/terminals", terminals),
    Route(f"{_ONE}/terminals", open_terminal, methods=["POST"]),
    Route(_TERMINAL, show_terminal),
    Route(f"{_TERMINAL}/output", output),
    Route(f"{_TERMINAL}/keys", keys, methods=["POST"]),
    Route(f"{_TERMINAL}/size", resize, methods=["POST"]),
]
