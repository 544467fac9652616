"""Control's side: a node that may be another process or another machine, as the `NodeClient` that control knows.

`RemoteNode` keeps one connection and makes a new one when it is lost: a node that restarts is found again by itself.
Calls that were under way then fail with NodeUnreachable. Routes stay meanwhile: what is connected to a sandbox goes
on, because nothing of it passes through the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import structlog

from atoll.model.errors import AtollError, NodeUnreachable, PlatformError
from atoll.model.network import NetworkConnection, NetworkPolicy
from atoll.model.sandbox import EndReason, PauseMode, SandboxSpec, SandboxStats
from atoll.model.seams import (
    NodeClient,
    NodeEvents,
    NodeImage,
    NodePause,
    NodePresence,
    NodeSandbox,
    NodeSnapshot,
    Route,
    RouteSink,
)
from atoll.model.tasks import OwnedTasks
from atoll.model.template import Template
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.node import VERSION
from atoll.wire.node.codec import STATUS, error_from_json, operations

Connect = Callable[[], Awaitable[Channel]]
"""A new connection to the node. Raises OSError, ChannelClosed."""

Dial = Callable[[str, int], Awaitable[socket.socket]]
"""(sandbox id, port) → a connected socket, for channels that carry no descriptors."""

RECONNECT_WITHIN_S = 8.0
"""How long a call waits for a node that is being started again: longer than a start takes, and the pause before it."""
ANSWER_WITHIN_S = 20.0
LONG_ANSWER_WITHIN_S = 60.0
COPY_WITHIN_S = 900.0
"""For what copies as much as a sandbox has written."""
"""Of a create and a kill, which the node bounds by itself: past it the node is broken, not slow."""
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.02, 1.0

_log = structlog.get_logger("atoll.control")


@dataclass(slots=True)
class _Call:
    answered: asyncio.Future[tuple[Any, Sequence[int]]]
    channel: Channel | None = None
    """Over which it was sent: with that connection the answer is lost."""


class RemoteNode:
    """`async with RemoteNode(connect) as node:` returns once the node has sent its id.

    Args:
        connect: makes a connection; called again after each loss.
        dial: how ports of its sandboxes are reached; None: through the connection, which carries descriptors.
        presence: gets each connection, each heartbeat and each loss.
        is_waited_for: whether entering waits for the node. One that is not is registered whenever it is there.
        expected_id: which node it has to say that it is; None: any.

    Entering raises NodeUnreachable, PlatformError (a node of another version).
    """

    def __init__(
        self,
        connect: Connect,
        *,
        dial: Dial | None = None,
        presence: NodePresence | None = None,
        is_waited_for: bool = True,
        expected_id: str | None = None,
    ) -> None:
        self._connect = connect
        self._dial = dial
        self._presence = presence
        self._is_waited_for = is_waited_for
        self._expected_id = expected_id
        self._numbers = itertools.count(1)
        self._pending: dict[int, _Call] = {}
        self._channel: Channel | None = None
        self._connected = asyncio.Event()
        self._events: NodeEvents | None = None
        self._sink: RouteSink | None = None
        self._routes: dict[str, Route] = {}
        self._tiers: dict[str, tuple[str, ...]] = {}
        self._early: list[dict[str, Any]] = []
        self._deliveries = OwnedTasks()
        self._node_id = expected_id or ""
        self._running: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._running = asyncio.create_task(self._run(first), name="node connection")
        if not self._is_waited_for:
            return self
        try:
            async with asyncio.timeout(RECONNECT_WITHIN_S):
                await first
        except TimeoutError as error:
            await self.aclose()
            raise NodeUnreachable("the node does not answer") from error
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the connection; the node and its sandboxes go on. Idempotent."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        self._deliveries.cancel()
        self._lost(self._channel)

    # The connection

    async def _run(self, first: asyncio.Future[None]) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                channel = await self._connect()
                try:
                    await self._greet(channel)
                    pause = _FIRST_PAUSE_S
                    if not first.done():
                        first.set_result(None)
                    while True:
                        self._take(*await channel.receive())
                finally:
                    channel.close()
                    self._lost(channel)
            except (KeyError, TypeError, ValueError) as error:
                _log.error("node.nonsense", node=self._node_id, error=repr(error))
            except (OSError, ChannelClosed) as error:
                is_news = pause == _FIRST_PAUSE_S and not self._is_waited_for
                (_log.warning if is_news else _log.debug)(
                    "node.connection_lost", node=self._node_id, error=str(error) or type(error).__name__
                )
            except AtollError as error:
                if not first.done() and self._is_waited_for:
                    first.set_exception(error)
                    return
                _log.error("node.refused", node=self._node_id, error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE_S)

    async def _greet(self, channel: Channel) -> None:
        hello = (await channel.receive()).body.get("hello")
        if not isinstance(hello, dict) or hello.get("version") != VERSION:
            found = hello.get("version") if isinstance(hello, dict) else None
            raise PlatformError(f"the node speaks version {found!r} of the protocol, this server {VERSION}")
        node_id = str(hello["node_id"])
        if self._expected_id is not None and node_id != self._expected_id:
            raise PlatformError(f"the node {self._expected_id!r} says that it is {node_id[:64]!r}")
        self._node_id = node_id
        self._take_tiers(hello["tiers"])
        self._replace_routes(hello["routes"])
        status = STATUS.validate_python(hello["status"])
        self._channel = channel
        self._connected.set()
        if self._presence is not None:
            self._presence.registered(self, status)

    def _lost(self, channel: Channel | None) -> None:
        """Whatever was asked over it gets no answer any more."""
        if self._channel is channel:
            self._channel = None
            self._connected.clear()
            if self._presence is not None:
                self._presence.lost(self._node_id)
        for call in self._pending.values():
            if call.channel is channel and not call.answered.done():
                call.answered.set_exception(NodeUnreachable(f"the connection to node {self._node_id!r} was lost"))
                call.answered.exception()  # the caller may have been cancelled

    def _take(self, body: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        call = self._pending.get(body["id"]) if isinstance(body.get("id"), int) else None
        if call is not None and not call.answered.done():
            if "error" in body:
                call.answered.set_exception(error_from_json(body["error"]))
            else:
                call.answered.set_result((body.get("ok"), descriptors))
                return
        for descriptor in descriptors:
            os.close(descriptor)
        if "beat" in body and self._presence is not None:
            self._presence.beat(self._node_id, STATUS.validate_python(body["beat"]))
        elif "event" in body:
            self._take_event(dict(body))
        elif isinstance(route := body.get("route"), dict):
            self._add_route(route)
        elif isinstance(gone := body.get("unroute"), str):
            self._remove_route(gone)
        elif isinstance(tiers := body.get("tiers"), dict):
            self._take_tiers(tiers)

    # Facts

    def subscribe(self, events: NodeEvents) -> None:
        """From now on `events` gets what happens on the node, first what came before."""
        self._events = events
        early, self._early = self._early, []
        for body in early:
            self._take_event(body)

    def subscribe_routes(self, sink: RouteSink) -> None:
        """From now on `sink` holds the routes of this node, beginning with those that are known."""
        self._sink = sink
        for route in self._routes.values():
            sink.add(route)

    def _take_event(self, body: dict[str, Any]) -> None:
        if self._events is None:
            self._early.append(body)
            return
        self._deliveries.start(self._deliver(self._events, body))

    async def _deliver(self, events: NodeEvents, body: Mapping[str, Any]) -> None:
        operation = operations(NodeEvents).get(str(body["event"]))
        try:
            if operation is not None:  # a newer node may know more kinds of events
                await getattr(events, operation.name)(**operation.decode_arguments(body.get("args")))
        except Exception:
            _log.exception("node.event_failed", event_name=str(body["event"])[:64])
        if self._channel is not None:
            with contextlib.suppress(ChannelClosed):
                await self._channel.send({"ack": body.get("seq")})

    def _take_tiers(self, tiers: Mapping[str, Sequence[str]]) -> None:
        self._tiers = {str(tier): tuple(missing) for tier, missing in tiers.items()}

    def _add_route(self, body: Mapping[str, Any]) -> None:
        sandbox_id = str(body["sandbox_id"])
        route = Route(
            sandbox_id=sandbox_id,
            dial=functools.partial(self.dial, sandbox_id),
            envd_access_token=body.get("envd_access_token"),
            traffic_access_token=body.get("traffic_access_token"),
            mask_request_host=body.get("mask_request_host"),
        )
        self._routes[sandbox_id] = route
        if self._sink is not None:
            self._sink.add(route)

    def remove_routes(self) -> None:
        """After `aclose`, where it is not connected to again: nothing of it is found any more."""
        self._replace_routes([])

    def _remove_route(self, sandbox_id: str) -> None:
        self._routes.pop(sandbox_id, None)
        if self._sink is not None:
            self._sink.remove(sandbox_id)

    def _replace_routes(self, bodies: Sequence[Mapping[str, Any]]) -> None:
        for gone in self._routes.keys() - {str(body["sandbox_id"]) for body in bodies}:
            self._remove_route(gone)
        for body in bodies:
            self._add_route(body)

    # Commands

    async def _call(self, name: str, /, within_s: float = ANSWER_WITHIN_S, **arguments: Any) -> Any:
        operation = operations(NodeClient)[name]
        answer, _ = await self._ask(name, operation.encode_arguments(arguments), within_s)
        return operation.decode_result(answer)

    async def _ask(
        self, name: str, arguments: Mapping[str, Any], within_s: float = ANSWER_WITHIN_S
    ) -> tuple[Any, Sequence[int]]:
        """Raises NodeUnreachable, or what the node raised. Cancelling it cancels the call on the node."""
        try:
            async with asyncio.timeout(within_s):
                return await self._answer(name, arguments)
        except TimeoutError as error:
            raise NodeUnreachable(f"node {self._node_id!r} did not answer {name!r} within {within_s:.0f} s") from error

    async def _answer(self, name: str, arguments: Mapping[str, Any]) -> tuple[Any, Sequence[int]]:
        number = next(self._numbers)
        call = _Call(asyncio.get_running_loop().create_future())
        self._pending[number] = call
        try:
            await self._send(call, {"id": number, "call": name, "args": arguments})
            return await call.answered
        except asyncio.CancelledError:
            await self._give_up(number, call)
            raise
        finally:
            self._pending.pop(number, None)

    async def _send(self, call: _Call, message: dict[str, Any]) -> None:
        """Sends it whole, over a new connection if need be. Raises NodeUnreachable."""
        while call.channel is None:
            call.channel = channel = await self._current_channel()
            try:
                await channel.send(message)
            except ChannelClosed:
                call.channel = None  # it was not received: nothing speaks against sending it again
                self._lost(channel)

    async def _give_up(self, number: int, call: _Call) -> None:
        if call.answered.done() and not call.answered.cancelled() and call.answered.exception() is None:
            for descriptor in call.answered.result()[1]:
                os.close(descriptor)
        elif call.channel is not None:
            with contextlib.suppress(ChannelClosed):
                await call.channel.send({"cancel": number})

    async def _current_channel(self) -> Channel:
        try:
            async with asyncio.timeout(RECONNECT_WITHIN_S):
                while self._channel is None:
                    await self._connected.wait()
        except TimeoutError as error:
            raise NodeUnreachable(f"node {self._node_id!r} does not answer") from error
        return self._channel

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """A connected, non-blocking socket to a port of a sandbox. Raises PortClosed, SandboxGone, NodeUnreachable."""
        if self._dial is not None:
            return await self._dial(sandbox_id, port)
        _, descriptors = await self._ask("dial", {"sandbox_id": sandbox_id, "port": port})
        if not descriptors:
            raise PlatformError("the node answered without a connection")
        for needless in descriptors[1:]:
            os.close(needless)
        sock = socket.socket(fileno=descriptors[0])
        sock.setblocking(False)
        return sock

    @property
    def node_id(self) -> str:
        """See NodeClient."""
        return self._node_id

    async def create(self, request: SandboxSpec) -> NodeSandbox:
        """See NodeClient."""
        made: NodeSandbox = await self._call("create", LONG_ANSWER_WITHIN_S, request=request)
        return made

    async def assign(self, spec: SandboxSpec) -> NodeSandbox:
        """See NodeClient."""
        made: NodeSandbox = await self._call("assign", spec=spec)
        return made

    async def kill(self, sandbox_id: str, reason: EndReason) -> bool:
        """See NodeClient."""
        return bool(await self._call("kill", LONG_ANSWER_WITHIN_S, sandbox_id=sandbox_id, reason=reason))

    async def pause(self, sandbox_id: str, mode: PauseMode, need_answer: bool) -> NodePause:
        """See NodeClient."""
        paused: NodePause = await self._call(
            "pause", LONG_ANSWER_WITHIN_S, sandbox_id=sandbox_id, mode=mode, need_answer=need_answer
        )
        return paused

    async def resume(self, sandbox_id: str, mode: PauseMode, network: NetworkPolicy) -> NodeSandbox:
        """See NodeClient."""
        resumed: NodeSandbox = await self._call(
            "resume", LONG_ANSWER_WITHIN_S, sandbox_id=sandbox_id, mode=mode, network=network
        )
        return resumed

    async def renew(self, lease_s: float, since: float) -> None:
        """See NodeClient."""
        await self._call("renew", lease_s=lease_s, since=since)

    async def stats(self, sandbox_id: str) -> SandboxStats:
        """See NodeClient."""
        reading: SandboxStats = await self._call("stats", sandbox_id=sandbox_id)
        return reading

    async def flush_logs(self, sandbox_id: str) -> None:
        """See NodeClient."""
        await self._call("flush_logs", sandbox_id=sandbox_id)

    def unenforced(self, tier: str) -> Sequence[str]:
        """See NodeClient. Of a tier that does not run nothing is claimed."""
        return self._tiers.get(tier, ("cpu", "memory", "pids", "disk"))

    async def update_network(self, sandbox_id: str, network: NetworkPolicy) -> None:
        """See NodeClient."""
        await self._call("update_network", sandbox_id=sandbox_id, network=network)

    async def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """See NodeClient."""
        found: Sequence[NetworkConnection] = await self._call("connections", sandbox_id=sandbox_id)
        return found

    async def sandboxes(self) -> Sequence[NodeSandbox]:
        """See NodeClient."""
        alive: Sequence[NodeSandbox] = await self._call("sandboxes")
        return alive

    async def make_template(self, name: str, wait_s: float) -> None:
        """See NodeClient."""
        await self._call("make_template", wait_s + ANSWER_WITHIN_S, name=name, wait_s=wait_s)

    async def commit(self, sandbox_id: str, image_id: str) -> None:
        """See NodeClient."""
        await self._call("commit", COPY_WITHIN_S, sandbox_id=sandbox_id, image_id=image_id)

    async def commit_layers(
        self, sandbox_id: str, directory: str, first: int, below: str | None, image_ids: Sequence[str]
    ) -> None:
        """See NodeClient."""
        await self._call(
            "commit_layers",
            COPY_WITHIN_S,
            sandbox_id=sandbox_id,
            directory=directory,
            first=first,
            below=below,
            image_ids=image_ids,
        )

    async def snapshot(self, sandbox_id: str, image_id: str, mode: PauseMode | None, *, durable: bool) -> NodeSnapshot:
        """See NodeClient."""
        made: NodeSnapshot = await self._call(
            "snapshot", COPY_WITHIN_S, sandbox_id=sandbox_id, image_id=image_id, mode=mode, durable=durable
        )
        return made

    async def has_image(self, image_id: str) -> bool:
        """See NodeClient."""
        found: bool = await self._call("has_image", image_id=image_id)
        return found

    async def share_image(self, image_id: str) -> None:
        """See NodeClient."""
        await self._call("share_image", COPY_WITHIN_S, image_id=image_id)

    async def images(self) -> Sequence[NodeImage]:
        """See NodeClient."""
        found: Sequence[NodeImage] = await self._call("images", LONG_ANSWER_WITHIN_S)
        return found

    async def keep_images(self, image_ids: Sequence[str]) -> int:
        """See NodeClient."""
        removed: int = await self._call("keep_images", COPY_WITHIN_S, image_ids=image_ids)
        return removed

    async def create_volume(self, volume_id: str, size_mib: int, token_digest: str) -> None:
        """See NodeClient."""
        await self._call(
            "create_volume", LONG_ANSWER_WITHIN_S, volume_id=volume_id, size_mib=size_mib, token_digest=token_digest
        )

    async def remove_volume(self, volume_id: str) -> None:
        """See NodeClient."""
        await self._call("remove_volume", LONG_ANSWER_WITHIN_S, volume_id=volume_id)

    async def templates(self) -> Sequence[Template]:
        """See NodeClient."""
        known: Sequence[Template] = await self._call("templates")
        return known
