"""The gateway's side: takes sandboxes with their sockets and policies from one node, and answers it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import structlog
from pydantic import TypeAdapter

from atoll.isolation.base import EgressSockets
from atoll.model.errors import AtollError
from atoll.model.network import NetworkConnection, NetworkPolicy
from atoll.wire.channel import Channel, ChannelClosed, Message
from atoll.wire.egress import VERSION

CONNECTIONS: TypeAdapter[Sequence[NetworkConnection]] = TypeAdapter(Sequence[NetworkConnection])

_log = structlog.get_logger("atoll.gateway")


class ServedGateway(Protocol):
    """What a gateway offers to its server."""

    def attach(self, sandbox_id: str, sockets: EgressSockets | None, network: NetworkPolicy) -> None:
        """Takes over the sockets. One that is attached already keeps its own and gets the policy."""
        ...

    async def detach(self, sandbox_id: str) -> None:
        """Cuts what is open. Idempotent."""
        ...

    async def keep_only(self, sandbox_ids: Collection[str]) -> None:
        """Detaches all others."""
        ...

    def update(self, sandbox_id: str, network: NetworkPolicy) -> bool:
        """At once. False: it is not attached, so there is nothing to update."""
        ...

    def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """Oldest first."""
        ...

    def trust(self, certificate: str, key: str) -> None:
        """Of the authority that header rules over HTTPS need, as PEM. Raises ValueError."""
        ...


class GatewayServer:
    """`serve` speaks with one node; a new one takes the place of the one before."""

    def __init__(self, gateway: ServedGateway) -> None:
        self._gateway = gateway
        self._channel: Channel | None = None

    async def serve(self, channel: Channel) -> None:
        """Until the node is gone, or says what no node says. What is attached stays."""
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        async with asyncio.TaskGroup() as ends:
            try:
                await channel.send({"hello": {"version": VERSION}})
                while True:
                    await self._take(channel, await channel.receive(), ends)
            except ChannelClosed:
                pass
            except (KeyError, TypeError, ValueError, AtollError) as error:
                _log.error("gateway.node_refused", error=repr(error))
            finally:
                channel.close()

    async def _take(self, channel: Channel, message: Message, ends: asyncio.TaskGroup) -> None:
        body = message.body
        if "attach" in body:
            self._attach(body, message.descriptors)
            return
        for descriptor in message.descriptors:
            os.close(descriptor)
        if "detach" in body:
            ends.create_task(self._gateway.detach(str(body["detach"])))
        elif "only" in body:
            ends.create_task(self._gateway.keep_only({str(one) for one in body["only"]}))
        elif "authority" in body:
            self._gateway.trust(str(body["authority"]["certificate"]), str(body["authority"]["key"]))
        elif "update" in body:
            is_attached = self._gateway.update(str(body["update"]), NetworkPolicy.from_json(body["network"]))
            await channel.send({"id": body["id"], "ok": is_attached})
        elif "connections" in body:
            found = self._gateway.connections(str(body["connections"]))
            await channel.send({"id": body["id"], "ok": CONNECTIONS.dump_python(found, mode="json")})
        else:
            raise ValueError(f"no message of a node: {sorted(body)[:5]}")

    def _attach(self, body: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        try:
            pair = EgressSockets(*sockets) if sockets else None
            self._gateway.attach(str(body["attach"]), pair, NetworkPolicy.from_json(body["network"]))
        except BaseException:
            for one in sockets:
                one.close()
            raise
