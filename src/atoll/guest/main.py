"""The guest's entry and composition: `main(listener, config)` in the first process of a sandbox.

Called after a fork from a zygote that has imported this module: everything the guest will ever need is loaded by then,
because the root has changed and nothing can be imported any more. `main` relies on neither argv, cwd, environment nor
the inherited standard descriptors. **One thread, or two**: where the tier has made a
second one, programs are started in it (`guest/process/spawn.py`) while this one waits. (In gVisor another one answers
for /dev/tty; it names all paths from the root, and starts and makes nothing.) Nothing else may use threads
(`to_thread`, `run_in_executor`, `getaddrinfo` of a name): `umask`, directory and descriptors are shared.

To add a service: build it in `build_servers` and mount it on the envd router; the interpreter has a hook of its own.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import encodings.idna  # noqa: F401  (looked up by name when a host name is resolved)
import gc
import os
import socket
import sys
import traceback
from typing import NoReturn

from atoll.guest.files.contents import OPEN_ROUTES as FILES_OPEN_ROUTES
from atoll.guest.files.contents import Files
from atoll.guest.files.service import Filesystem
from atoll.guest.interpreter import inside
from atoll.guest.interpreter.service import Interpreter
from atoll.guest.log import Tee
from atoll.guest.machine import shown as machine
from atoll.guest.metrics import Metrics
from atoll.guest.parts import Guest
from atoll.guest.pid1 import checkpoint, elevate, notes, quota, relief, trust, warmup
from atoll.guest.pid1.checkpoint import Checkpoint
from atoll.guest.pid1.init import Init, prepare_process, run_start_cmd
from atoll.guest.pid1.reaper import Reaper
from atoll.guest.process.service import ProcessService, ProcessTable
from atoll.guest.process.users import Users
from atoll.guest.server import Router
from atoll.guest.state import GuestState
from atoll.guest.tier_parts import TierParts
from atoll.guest.transport import Transport
from atoll.guest.watch.service import Watch
from atoll.http1.server import Handler, Request, Response
from atoll.model.sandbox import ENVD_PORT, HUNG_UP, INTERPRETER_PORT, SandboxSpec
from atoll.wire.envd.connect import Service
from atoll.wire.envd.filesystem import SERVICE as FILESYSTEM

_JSON_CODECS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")
"""`json.loads` guesses among these from the first bytes, which a client chooses."""

for _name in (*_JSON_CODECS, "latin-1", "ascii", "idna", "cp437", "unicode_escape"):
    codecs.lookup(_name)

CONTROL_PORT = 0
_HUNG_UP_WITHIN_S = 0.02


def begin() -> TierParts:
    """In the guest's own process, before anything else of it: the tier sets there what it has, and hands it back."""
    return TierParts()


def main(listener: socket.socket, spec: SandboxSpec, tier: TierParts | None = None) -> NoReturn:
    """Serves until the sandbox ends. Never returns."""
    status = 1
    tier = tier or TierParts()
    try:
        prepare_process()
        gc.freeze()
        with tier.runner as runner:
            runner.run(serve(listener, spec, tier=tier))
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


def prepare(tier: TierParts) -> None:
    """For a sandbox made ahead of need, in its own process, before `main` and before it is known whose it will be.

    What the guest writes to while it starts becomes this process's own here, and no longer while somebody waits.
    """
    warmup.rehearse(build_servers, tier.runner)


def warm_up() -> None:
    """For the zygote, once, before it forks: see `guest/pid1/warmup.py`."""
    warmup.exercise(build_servers)


async def serve(
    listener: socket.socket, spec: SandboxSpec, users: Users | None = None, tier: TierParts | None = None
) -> None:
    """Everything, on the running loop, until it is cancelled."""
    loop = asyncio.get_running_loop()
    state = GuestState(spec, users or Users(), tier)
    sys.stderr = Tee(state.log, sys.stderr)
    if spec.ca_certificate is not None:
        trust.install(spec.ca_certificate, state.env_vars)
    reaper = Reaper(loop)
    guest = Guest(state, reaper, ProcessTable(state, reaper, loop), loop, Checkpoint(state))
    reaper.start()
    servers = build_servers(guest)
    if (shown := state.tier.machine) is not None:
        shown.start(loop)
        servers |= {port: shown.watched(servers[port]) for port in (ENVD_PORT, INTERPRETER_PORT)}
    transport = Transport(servers, loop, guest.connections)
    await transport.start(listener)
    guest.checkpoint.serve(transport)
    if state.tier.sudo is not None:
        elevate.Elevation(guest).start(state.tier.sudo)
    run_start_cmd(state, guest.processes)
    await loop.create_future()


def build_servers(guest: Guest) -> dict[int, Handler]:
    """Port → HTTP handler."""
    return {
        ENVD_PORT: _envd(guest),
        INTERPRETER_PORT: _interpreter(guest),
        CONTROL_PORT: _control(guest),
    }


def _envd(guest: Guest) -> Router:
    state = guest.state
    metrics = Metrics(state)

    async def health(request: Request) -> Response:
        return Response(204)

    async def envs(request: Request) -> Response:
        return Response.json(state.env_vars)

    async def read_metrics(request: Request) -> Response:
        return Response.json(metrics.read())

    # /files is open for the router because a signature may stand in for the token; its own handlers check both.
    router = Router(state, open_routes=(("GET", "/health"), *FILES_OPEN_ROUTES))
    router.add("GET", "/health", health)
    router.add("GET", "/envs", envs)
    router.add("GET", "/metrics", read_metrics)
    router.mount(ProcessService(state, guest.processes).service)
    filesystem = Service(FILESYSTEM)
    Filesystem(state).register(filesystem)
    Watch(state).register(filesystem)
    router.mount(filesystem)
    Files(state).register(router)
    return router


def _interpreter(guest: Guest) -> Handler:
    if guest.state.spec.interpreter:
        interpreter = Interpreter(guest.state, guest.reaper)
        interpreter.start()
        interpreter.contexts.background.start(inside.serve(interpreter.handle, guest.loop))
        return interpreter.handle

    async def absent(request: Request) -> Response:
        return Response.error(502, "this template has no code interpreter")

    router = Router(guest.state, open_routes=(("GET", "/health"),))
    router.add_prefix("*", "/", absent)
    return router


def _control(guest: Guest) -> Router:
    async def health(request: Request) -> Response:
        return Response(204)

    async def hang_up(request: Request) -> Response:
        # What clients have not got of an output waits for the next to connect.
        await guest.connections.hang_up(_HUNG_UP_WITHIN_S)
        return Response(204, (("connection", "close"), (HUNG_UP, "1")))

    # The host's side of the socket is the authority here: no token.
    control_routes = (("POST", "/init"), ("GET", "/logs"), ("POST", "/notes"), ("POST", "/hang-up"))
    tier_routes = (machine.LIMITS_ROUTE, *quota.ROUTES, relief.ROUTE, *checkpoint.ROUTES)
    router = Router(guest.state, open_routes=(("GET", "/health"), *control_routes, *tier_routes))
    router.add("GET", "/health", health)
    router.add("GET", "/logs", guest.state.log.handle)
    router.add("POST", "/hang-up", hang_up)
    router.add("POST", "/notes", notes.handler(guest.state.log))
    router.add("POST", "/init", Init(guest.state).handle)
    router.add(*machine.LIMITS_ROUTE, machine.limits_handler(guest.state))
    tier = guest.state.tier
    if tier.shared is not None:
        router.add(*checkpoint.CHECKPOINT_ROUTE, guest.checkpoint.prepare)
        router.add(*checkpoint.IDENTITY_ROUTE, guest.checkpoint.identify)
    if tier.quota is not None:
        router.add("GET", "/quota", tier.quota.read)
        router.add("POST", "/quota", tier.quota.change)
        router.add(*relief.ROUTE, relief.handle)
    return router
