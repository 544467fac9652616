"""The node's side: answers calls, sends facts until they are acknowledged, hands out connections to sandboxes.

One `NodeServer` serves one node to any number of control processes. Calls run as tasks of the connection: a caller that
cancels, or whose connection ends, cancels them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import structlog

from atoll.model.errors import AtollError, InvalidRequest, PlatformError, SandboxGone
from atoll.model.logs import LogEntry
from atoll.model.sandbox import EndReason, OomKill
from atoll.model.seams import NodeClient, NodeEvents, NodeStatus, Route, RouteTable
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.node import VERSION
from atoll.wire.node.codec import STATUS, error_to_json, operations

_log = structlog.get_logger("atoll.node")

BEAT_S = 1.0
_CALLS_AT_ONCE = 1000


class ServedNode(NodeClient, RouteTable, Protocol):
    """What a node offers to its server."""

    def tiers(self) -> Mapping[str, Sequence[str]]:
        """Each tier that runs, and which limits its sandboxes do not keep."""
        ...

    def status(self) -> NodeStatus:
        """As it is now."""
        ...


class NodeServer:
    """Implements NodeEvents and RouteSink towards the node: what it gets goes to every connection."""

    def __init__(self, node: ServedNode) -> None:
        self._node = node
        self._connections: set[_Connection] = set()
        self._seq = itertools.count(1)
        self._unacknowledged: dict[int, tuple[dict[str, Any], asyncio.Future[None]]] = {}
        self._tiers: dict[str, list[str]] = {}

    async def serve(self, channel: Channel) -> None:
        """Speaks with one control process until either side ends it."""
        connection = _Connection(self, channel)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    # What the node reports

    async def sandbox_ended(self, sandbox_id: str, reason: EndReason, detail: str) -> None:
        """See NodeEvents. Returns when it was acknowledged, over however many connections."""
        await self._send_fact("sandbox_ended", sandbox_id=sandbox_id, reason=reason, detail=detail)

    async def sandbox_out_of_memory(self, sandbox_id: str, victim: OomKill) -> None:
        """See NodeEvents."""
        await self._send_fact("sandbox_out_of_memory", sandbox_id=sandbox_id, victim=victim)

    async def sandbox_logged(self, sandbox_id: str, entries: Sequence[LogEntry]) -> None:
        """See NodeEvents."""
        await self._send_fact("sandbox_logged", sandbox_id=sandbox_id, entries=entries)

    async def _send_fact(self, name: str, **arguments: Any) -> None:
        seq = next(self._seq)
        event = {"seq": seq, "event": name, "args": operations(NodeEvents)[name].encode_arguments(arguments)}
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unacknowledged[seq] = event, acknowledged
        try:
            self._send_to_all(event)
            await acknowledged
        finally:
            self._unacknowledged.pop(seq, None)

    def acknowledge(self, seq: Any) -> None:
        """The reporter may go on."""
        waiting = self._unacknowledged.get(seq)
        if waiting is not None and not waiting[1].done():
            waiting[1].set_result(None)

    def add(self, route: Route) -> None:
        """See RouteSink."""
        self._send_to_all({"route": route_to_json(route)})

    def remove(self, sandbox_id: str) -> None:
        """See RouteSink."""
        self._send_to_all({"unroute": sandbox_id})

    def _send_to_all(self, message: dict[str, Any]) -> None:
        for connection in self._connections:
            connection.queue(message)

    # What a connection asks

    def opening(self) -> list[dict[str, Any]]:
        """The first messages of a connection."""
        hello = {
            "hello": {
                "version": VERSION,
                "node_id": self._node.node_id,
                "status": self.status(),
                "tiers": self._current_tiers(),
                "routes": [route_to_json(route) for route in self._node.routes()],
            }
        }
        return [hello, *(event for event, _ in self._unacknowledged.values())]

    def status(self) -> Any:
        """Of the node, as plain values."""
        return STATUS.dump_python(self._node.status(), mode="json")

    def changed_tiers(self) -> dict[str, list[str]] | None:
        """The tiers, if they have changed since they were sent last."""
        before = self._tiers
        return now if (now := self._current_tiers()) != before else None

    def _current_tiers(self) -> dict[str, list[str]]:
        self._tiers = {tier: list(missing) for tier, missing in self._node.tiers().items()}
        return self._tiers

    async def call(self, name: str, received: Any) -> Any:
        """One call of NodeClient, as plain values. Raises AtollError."""
        operation = operations(NodeClient).get(name)
        if operation is None:
            raise InvalidRequest(f"the node knows no call {name[:64]!r}")
        result = await getattr(self._node, operation.name)(**operation.decode_arguments(received))
        return operation.encode_result(result)

    async def dial(self, sandbox_id: str, port: int) -> socket.socket:
        """Raises SandboxGone, PortClosed."""
        route = self._node.find(sandbox_id)
        if route is None:
            raise SandboxGone(sandbox_id)
        return await route.dial(port)


class _Connection:
    """One control process. What is queued is sent in order by one task; each call is a task."""

    def __init__(self, server: NodeServer, channel: Channel) -> None:
        self._server = server
        self._channel = channel
        self._out: asyncio.Queue[tuple[dict[str, Any], int | None]] = asyncio.Queue()
        self._calls: dict[Any, asyncio.Task[None]] = {}

    def queue(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        self._out.put_nowait((message, descriptor))

    async def run(self) -> None:
        for message in self._server.opening():
            self.queue(message)
        try:
            async with asyncio.TaskGroup() as tasks:
                sender, beats = tasks.create_task(self._send()), tasks.create_task(self._beat())
                try:
                    while True:
                        await self._take(tasks)
                except ChannelClosed:
                    sender.cancel()
                    beats.cancel()
                    for call in self._calls.values():
                        call.cancel()
        finally:
            self._channel.close()
            while not self._out.empty():
                _, descriptor = self._out.get_nowait()
                if descriptor is not None:
                    os.close(descriptor)

    async def _take(self, tasks: asyncio.TaskGroup) -> None:
        message = await self._channel.receive()
        for descriptor in message.descriptors:  # nobody has any business sending some
            os.close(descriptor)
        body = message.body
        if "ack" in body:
            self._server.acknowledge(body["ack"])
        elif "cancel" in body:
            if (call := self._calls.get(body["cancel"])) is not None:
                call.cancel()
        elif "call" in body and len(self._calls) < _CALLS_AT_ONCE:
            call = tasks.create_task(self._answer(body))
            self._calls[body.get("id")] = call
            call.add_done_callback(lambda _: self._calls.pop(body.get("id"), None))
        else:
            self.queue({"id": body.get("id"), "error": error_to_json(PlatformError("the node does not take this now"))})

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            if self._out.empty():  # else what waits there is no sign of life yet, nor would one more heartbeat be
                self.queue({"beat": self._server.status()})

    async def _send(self) -> None:
        while True:
            message, descriptor = await self._out.get()
            try:
                await self._channel.send(message, () if descriptor is None else (descriptor,))
            except ChannelClosed:
                return  # the receiving side notices too, and ends the connection
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    async def _answer(self, body: Mapping[str, Any]) -> None:
        number, name, arguments = body.get("id"), str(body["call"]), body.get("args")
        try:
            if name == "dial":
                self.queue({"id": number, "ok": None}, await self._dial(arguments))
                return
            result = await self._server.call(name, arguments)
        except AtollError as error:
            self.queue({"id": number, "error": error_to_json(error)})
        except Exception:
            _log.exception("node.call_failed", call=name[:64])
            self.queue({"id": number, "error": error_to_json(PlatformError(f"the node failed at {name[:64]!r}"))})
        else:
            if (tiers := self._server.changed_tiers()) is not None:
                self.queue({"tiers": tiers})
            self.queue({"id": number, "ok": result})

    async def _dial(self, arguments: Any) -> int:
        try:
            sandbox_id, port = str(arguments["sandbox_id"]), int(arguments["port"])
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidRequest("dial takes a sandbox_id and a port") from error
        return (await self._server.dial(sandbox_id, port)).detach()


def route_to_json(route: Route) -> dict[str, Any]:
    """All but the way to dial, which the other side makes for itself."""
    return {
        "sandbox_id": route.sandbox_id,
        "envd_access_token": route.envd_access_token,
        "traffic_access_token": route.traffic_access_token,
        "mask_request_host": route.mask_request_host,
    }
