"""The list of sandboxes, the form that makes one, and what can be done to one: pause, resume, fork, snapshot, kill."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from atoll.console.gate import PREFIX
from atoll.console.view import caller, field, number, page, parts, to
from atoll.control.sandboxes.listing import ListQuery, parse_page_token
from atoll.control.sandboxes.orders import TIER_KEY, CreateOrder
from atoll.model.errors import AtollError, InvalidRequest
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import PauseMode, SandboxRecord, SandboxState

_PAGE = 50
_TIMEOUT_S = 300
_SIZES = {"cpu": "atoll.cpu", "memory": "atoll.memory", "tier": TIER_KEY}


async def show(request: Request) -> Response:
    """One page of them, newest first."""
    token = request.query_params.get("after")
    query = ListQuery(limit=_PAGE, after=parse_page_token(token) if token else None)
    found = await parts(request).services.sandboxes.page(caller(request), query)
    return page(
        request, "sandboxes.html", items=found.items, total=found.total_running, after=token, next=found.next_token
    )


async def show_form(request: Request) -> Response:
    """For a new one."""
    services = parts(request).services
    names = [one.names[0] if one.names else one.template_id for one in await services.templates.built_in()]
    namespace = await services.templates.namespace(caller(request).team_id)
    own = [f"{namespace}/{row.name}" for row, builds in await services.builds.own(caller(request)) if builds]
    return page(
        request,
        "new_sandbox.html",
        names=[*names, *own],
        chosen=request.query_params.get("template", "base")[:400],
        timeout_s=_TIMEOUT_S,
    )


async def create(request: Request) -> Response:
    """Makes it, and shows it."""
    order = CreateOrder(
        template=field(request, "template"),
        timeout_s=number(field(request, "timeout"), "timeout"),
        metadata=_pairs(field(request, "metadata", 64_000), "metadata")
        | {key: text for name, key in _SIZES.items() if (text := field(request, name, 20))},
        env_vars=_pairs(field(request, "environment", 128_000), "environment"),
        network=NetworkPolicy.checked(allow_internet=field(request, "internet") == "yes"),
        auto_pause=field(request, "on_timeout") == "pause",
    )
    record = await parts(request).services.creation.create(caller(request), order)
    request.state.made = {"sandbox_id": record.sandbox_id}
    return to(f"/sandboxes/{record.sandbox_id}")


async def pause(request: Request) -> Response:
    """With its memory where its tier keeps that."""
    services, sandbox_id = parts(request).services, _id(request)
    await services.pausing.pause(caller(request), sandbox_id, PauseMode.MEMORY, strict=False)
    return _back(request)


async def resume(request: Request) -> Response:
    """It runs again, for as long as a new one would."""
    await parts(request).services.pausing.connect(caller(request), _id(request), _TIMEOUT_S, reboot=False)
    return _back(request)


async def set_timeout(request: Request) -> Response:
    """From now."""
    seconds = number(field(request, "timeout"), "timeout")
    await parts(request).services.timeouts.set_timeout(caller(request), _id(request), seconds)
    return _back(request)


async def fork(request: Request) -> Response:
    """Another one with what this one has now; shows the new one."""
    outcomes = await parts(request).services.snapshots.fork(caller(request), _id(request), _TIMEOUT_S, 1)
    made = outcomes[0]
    if isinstance(made, AtollError):
        raise made
    request.state.made = {"made_1": made.sandbox_id}
    return to(f"/sandboxes/{made.sandbox_id}")


async def snapshot(request: Request) -> Response:
    """Keeps what it is now."""
    name = field(request, "name", 200) or None
    await parts(request).services.snapshots.create(caller(request), _id(request), name, None)
    return to("/snapshots")


async def kill(request: Request) -> Response:
    """Nothing of it is left."""
    await parts(request).services.ending.kill(caller(request), _id(request))
    return to("/sandboxes")


async def running(request: Request) -> SandboxRecord:
    """The one that the path names, if its guest can be asked. Raises SandboxNotFound, InvalidRequest."""
    record = await parts(request).services.sandboxes.get(caller(request), _id(request))
    if record.state is not SandboxState.RUNNING:
        raise InvalidRequest(f"sandbox {record.sandbox_id!r} is {record.state.value}", hint="resume it first")
    return record


def _id(request: Request) -> str:
    found: str = request.path_params["id"]
    return found


def _back(request: Request) -> Response:
    return to("/sandboxes" if field(request, "back") == "list" else f"/sandboxes/{_id(request)}")


def _pairs(text: str, name: str) -> dict[str, str]:
    """`key=value` lines. Raises InvalidRequest."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, is_pair, value = line.partition("=")
        if not is_pair or not key.strip():
            raise InvalidRequest(f"{name}: a line must be `key=value`, not {line[:60]!r}")
        found[key.strip()] = value.strip()
    return found


_ONE = f"{PREFIX}/sandboxes/{{id}}"
_ACTIONS = (pause, resume, set_timeout, fork, snapshot, kill)
ROUTES = [
    Route(f"{PREFIX}/sandboxes", show),
    Route(f"{PREFIX}/sandboxes", create, methods=["POST"]),
    Route(f"{PREFIX}/sandboxes/new", show_form),
    *(Route(f"{_ONE}/{one.__name__}", one, methods=["POST"]) for one in _ACTIONS),
]
