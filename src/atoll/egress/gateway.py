"""The gateway: one `SandboxEgress` per sandbox, made from the two sockets that lie in the sandbox's network namespace.

Owns accepting and its limits, and the life of everything that is open. What is decided about a connection is in
`connection`, about a question in `lookups`; who asks for which policy is control's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import structlog

from atoll.egress import dns
from atoll.egress.budget import Budget, Pace, Traffic
from atoll.egress.connection import Connection
from atoll.egress.intercept import Interception
from atoll.egress.lookups import Lookups
from atoll.egress.names import AnsweredNames
from atoll.egress.policy import EgressPolicy, Verdict
from atoll.egress.records import EgressRecord, Ledger
from atoll.isolation.base import EgressSockets
from atoll.model.addresses import ForbiddenNetworks
from atoll.model.tasks import OwnedTasks

MAX_CONNECTIONS = 1024
"""Open at once, per sandbox."""
MAX_QUESTIONS = 256
_AT_ONCE = 64
_PAUSE_S = 0.05
_CLOSE_S = 2.0
_CONNECTIONS_PER_S, _QUESTIONS_PER_S = 500.0, 300.0

log = structlog.get_logger("atoll.gateway")


@dataclass(frozen=True, slots=True)
class EgressContext:
    """What all sandboxes of a server share. `name_servers` None: the host's own, as its resolv.conf names them."""

    forbidden: Callable[[], ForbiddenNetworks]
    budget: Budget
    tls: Interception = field(default_factory=Interception)
    name_servers: tuple[str, ...] | None = None
    clock: Callable[[], float] = time.monotonic
    for_registries: Callable[[], ForbiddenNetworks] | None = None
    """In place of `forbidden` for a sandbox that fetches images; None: the same."""


class SandboxEgress:
    """The way out of one sandbox. Made on the running loop; takes over the sockets."""

    def __init__(self, sockets: EgressSockets, policy: EgressPolicy, context: EgressContext) -> None:
        self.policy = policy
        self.traffic = Traffic(policy.bytes_per_s, context.clock)
        self.ledger = Ledger()
        self.names = AnsweredNames(context.clock)
        self._context = context
        self.tls = context.tls
        self.lookups = Lookups(lambda: self.policy, self.forbidden, self.names, self.ledger, context.name_servers)
        self._budget = context.budget
        self._sockets = sockets
        self._tasks = OwnedTasks()
        self._open: set[Connection] = set()
        self._asking = 0
        self._paces = {
            sockets.connections: Pace(_CONNECTIONS_PER_S, 2 * MAX_CONNECTIONS, context.clock),
            sockets.questions: Pace(_QUESTIONS_PER_S, 2 * MAX_QUESTIONS, context.clock),
        }
        self._loop = asyncio.get_running_loop()
        self._closed = False
        for one in (sockets.connections, sockets.questions):
            one.setblocking(False)
            self._watch(one)

    def forbidden(self) -> ForbiddenNetworks:
        """What it may not reach, whatever its policy says, now."""
        for_registries = self._context.for_registries
        if self.policy.registries and for_registries is not None:
            return for_registries()
        return self._context.forbidden()

    def replace_policy(self, policy: EgressPolicy) -> None:
        """At once, for what is open too: connections that the new policy would not have opened are cut."""
        self.policy = policy
        self.traffic.bytes_per_s = policy.bytes_per_s
        for connection in list(self._open):
            connection.review()

    def records(self) -> list[EgressRecord]:
        """Oldest first; counts of open connections are of now."""
        for connection in self._open:
            connection.count()
        return self.ledger.records()

    async def aclose(self) -> None:
        """Cuts every connection and frees the sockets (a held one would keep the namespace alive). Idempotent."""
        if self._closed:
            return
        self._closed = True
        for one in (self._sockets.connections, self._sockets.questions):
            self._loop.remove_reader(one.fileno())
            one.close()
        await self._tasks.aclose()
        left = list(self._open)
        for connection in left:
            connection.settle()
        try:
            async with asyncio.timeout(_CLOSE_S):
                for connection in left:
                    await connection.closed.wait()
        except TimeoutError:
            log.error("egress.not_closed", connections=len(self._open))

    # -- arrivals ------------------------------------------------------------------------------------------------------

    def _watch(self, one: socket.socket) -> None:
        if not self._closed:
            act = self._accept if one is self._sockets.connections else self._receive
            self._loop.add_reader(one.fileno(), act)

    def _pause(self, one: socket.socket) -> None:
        """A client that is too fast waits in the kernel's queue, and costs the server nothing meanwhile."""
        self._loop.remove_reader(one.fileno())
        self._loop.call_later(_PAUSE_S, self._watch, one)

    def _accept(self) -> None:
        listener = self._sockets.connections
        listener.setblocking(False)  # its other holders, inside or in the node, share this
        for _ in range(_AT_ONCE):
            if not self._paces[listener].go():
                self._pause(listener)
                return
            try:
                client, source = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # out of descriptors, most likely
                log.warning("egress.accept_failed", error=str(error))
                self._pause(listener)
                return
            client.setblocking(False)
            if len(self._open) >= MAX_CONNECTIONS or not self._budget.take():
                self.ledger.turned_away += 1
                client.close()
                continue
            connection = Connection(self, client, source)
            self._open.add(connection)
            self._tasks.start(connection.run())

    def connection_closed(self, connection: Connection) -> None:
        """Called once by each connection, when nothing of it is left."""
        if connection in self._open:
            self._open.discard(connection)
            self._budget.give()

    async def turn_to_ask(self) -> None:
        """Waits until one more question may be put: all of a sandbox's have one pace, whatever carries them."""
        await asyncio.sleep(self._paces[self._sockets.questions].take())

    def _receive(self) -> None:
        questions = self._sockets.questions
        for _ in range(_AT_ONCE):
            if not self._paces[questions].go():
                self._pause(questions)
                return
            try:
                query, source = questions.recvfrom(dns.MAX_UDP + 1, socket.MSG_DONTWAIT)
            except OSError:
                return
            if self._asking >= MAX_QUESTIONS or not self._budget.take():
                continue
            self._asking += 1
            self._tasks.start(self._answer(query, source)).add_done_callback(self._answered)

    async def _answer(self, query: bytes, source: tuple[str, int]) -> None:
        try:
            record = EgressRecord(datetime.now(UTC), "dns", source[0], source[1], "", 53, "", Verdict.FAILED)
            answer = await self.lookups.answer(query, record, tcp=False)
            if answer is not None and not self._closed:
                with contextlib.suppress(OSError):
                    self._sockets.questions.sendto(answer, socket.MSG_DONTWAIT, source)
        except Exception:
            log.exception("egress.question_failed")

    def _answered(self, _: asyncio.Task[None]) -> None:
        self._asking -= 1
        self._budget.give()
