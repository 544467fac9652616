"""The guest's part when its sandbox is saved, and when it goes on from there: for tiers that can (gVisor).

    serving ── POST /checkpoint ──► shut: no listener, no connection; a file SHUT in the shared directory says so
    shut ── a file GO in that directory ──► the socket is bound anew ──► serving ── POST /identity ──► somebody else

A connection to the host cannot be saved, so all are cut before. GO is made by the host: at once where the sandbox goes
on beside its image, later in each that is restored from it. Programs inside notice nothing of either.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from atoll.guest.pid1 import trust
from atoll.guest.state import GuestState
from atoll.guest.transport import Transport
from atoll.http1.server import HttpError, Request, Response, json_object
from atoll.model.sandbox import SandboxSpec

CHECKPOINT_ROUTE = ("POST", "/checkpoint")
IDENTITY_ROUTE = ("POST", "/identity")
ROUTES = (CHECKPOINT_ROUTE, IDENTITY_ROUTE)
GO = "go"
SHUT = "shut"
_POLL_S = 0.004
_BACKLOG = 1024
_BODY_MAX = 32 << 20
_ROUNDS = 8
"""Of ending processes: a fork bomb makes new ones meanwhile."""


@dataclass(frozen=True, slots=True)
class Shared:
    """The directory that the host sees too, covered since for everybody else inside."""

    directory: int
    socket: str
    listens: str
    """A file that says that the socket listens."""
    become: Callable[[SandboxSpec], None]
    """Gives the sandbox another name, as the tier does it. Raises OSError."""


def adopt(directory: str, socket_name: str, listens: str, become: Callable[[SandboxSpec], None]) -> Shared:
    """With it a guest can be saved. Before the directory is covered. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return Shared(descriptor, socket_name, listens, become)


class Checkpoint:
    """The handlers of both routes, and the way back."""

    def __init__(self, state: GuestState) -> None:
        self._state = state
        self._transport: Transport | None = None
        self._standstill: asyncio.Task[None] | None = None

    def serve(self, transport: Transport) -> None:
        """What is to be shut and opened again."""
        self._transport = transport

    async def prepare(self, request: Request) -> Response:
        """A body `{"end", "shut"}`: whether all other processes are to end, and all connections.

        What was written is then on the way to the host's disk. 204; 202 before it is shut: this connection is cut too,
        so that the answer may be lost, and SHUT counts.
        """
        wish = json_object(await request.body.read(_BODY_MAX))
        if wish.get("end"):
            await _end_others()
        os.sync()
        if not wish.get("shut"):
            return Response(204)
        if self._standstill is None or self._standstill.done():
            self._standstill = asyncio.get_running_loop().create_task(self._stand_still())
        return Response(202, (("connection", "close"),))

    async def _stand_still(self) -> None:
        shared = self._state.tier.shared
        assert self._transport is not None
        assert shared is not None
        await self._transport.shut()
        _make(shared, SHUT)
        while not _take(shared, GO):  # noqa: ASYNC110 - nobody inside can say so, and a watch would see no host
            await asyncio.sleep(_POLL_S)
        _renew_randomness()
        await self._transport.start(_bind(shared))
        _make(shared, shared.listens)

    async def identify(self, request: Request) -> Response:
        """A body `{"spec"}`: this is another sandbox from now on. 204. Processes that run keep their environment."""
        try:
            spec = SandboxSpec.from_json((json_object(await request.body.read(_BODY_MAX)))["spec"])
        except (KeyError, TypeError, ValueError) as error:
            raise HttpError(400, f"malformed spec: {error}") from error
        shared = self._state.tier.shared
        assert shared is not None
        try:
            shared.become(spec)
        except OSError as error:
            raise HttpError(500, f"it cannot take the name {spec.sandbox_id!r}: {error}") from error
        self._state.become(spec)
        if spec.ca_certificate is not None:
            trust.install(spec.ca_certificate, self._state.env_vars)
        return Response(204)


async def _end_others() -> None:
    for _ in range(_ROUNDS):
        others = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid()]
        if not others:
            return
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(_POLL_S)


def _renew_randomness() -> None:
    """Two that go on from one image would otherwise draw the same."""
    random.seed()


def _make(shared: Shared, name: str) -> None:
    flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=shared.directory))


def _take(shared: Shared, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=shared.directory)
    except FileNotFoundError:
        return False
    return True


def _bind(shared: Shared) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchdir(shared.directory)  # no path leads there
    try:
        listener.bind(shared.socket)
    finally:
        os.chdir("/")
    listener.listen(_BACKLOG)
    return listener
