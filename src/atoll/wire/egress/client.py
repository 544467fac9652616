"""The node's side: the gateway as a process that may be killed, started again, or not answer for a while.

`RemoteGateway` holds every sandbox's policy and sockets, so it can give all of them to a gateway that was started
again; meanwhile what comes out of sandboxes waits in the kernel's queues. Attaching and detaching never wait for the
gateway: a sandbox is made and ended without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from pydantic import ValidationError

from atoll.isolation.base import EgressSockets
from atoll.model.errors import PlatformError, SandboxGone
from atoll.model.network import NetworkConnection, NetworkPolicy, split_targets
from atoll.tls import Authority
from atoll.wire.channel import Channel, ChannelClosed
from atoll.wire.egress import VERSION
from atoll.wire.egress.server import CONNECTIONS

ANSWER_WITHIN_S = 8.0
"""For a call, including the time in which a gateway that ended is started again."""
_SEND_WITHIN_S = 2.0
"""A gateway that takes nothing for so long gets everything anew over another connection."""
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.02, 1.0

_log = structlog.get_logger("atoll.node")


class WayOut(Protocol):
    """What is asked of a sandbox (`isolation.base.SandboxHandle`)."""

    sandbox_id: str

    async def egress_sockets(self) -> EgressSockets | None:
        """See SandboxHandle. Raises SandboxGone, PlatformError."""
        ...


@dataclass(slots=True, eq=False)
class _Attached:
    sandbox_id: str
    network: NetworkPolicy
    sockets: EgressSockets | None
    """None: they cannot be fetched, but the gateway may have them from an earlier node."""
    given_over: Channel | None = None
    """The connection over which the gateway has got it."""


@contextmanager
def _copies(sockets: EgressSockets | None) -> Iterator[Sequence[int]]:
    """For a message: they stay open until it is sent, also when the sandbox is detached meanwhile."""
    made: list[int] = []
    try:
        if sockets is not None:
            made.extend(os.dup(one.fileno()) for one in (sockets.connections, sockets.questions))
        yield made
    finally:
        for descriptor in made:
            os.close(descriptor)


class RemoteGateway:
    """See `node.egress.EgressGateway`. Connected to within `async with gateway.connected():`.

    Args:
        connect: makes a connection; called again after each loss.
        authority: for header rules over HTTPS. The gateway gets its key with the first policy that has rules, and
            keeps it in memory. Called when it is first needed; may raise PlatformError.
    """

    def __init__(self, connect: Callable[[], Awaitable[Channel]], authority: Callable[[], Authority]) -> None:
        self._connect = connect
        self._make_authority = authority
        self._authority: Authority | None = None
        self._attached: dict[str, _Attached] = {}
        self._channel: Channel | None = None
        self._connected = asyncio.Event()
        self._trusted: Channel | None = None
        self._numbers = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}

    # The connection

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Finds the gateway whenever it is there. What it has attached at the end stays attached."""
        running = asyncio.create_task(self._run(), name="egress gateway")
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def _run(self) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            try:
                channel = await self._connect()
                try:
                    await self._greet(channel)
                    pause = _FIRST_PAUSE_S
                    while True:
                        self._take((await channel.receive()).body)
                finally:
                    channel.close()
                    self._lost()
            except (OSError, ChannelClosed) as error:
                _log.debug("gateway.connection_lost", error=str(error))
            except (KeyError, TypeError, ValueError, PlatformError) as error:
                _log.error("gateway.nonsense", error=repr(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE_S)

    async def _greet(self, channel: Channel) -> None:
        """A gateway that begins gets all that is attached; one that goes on learns what is not any more."""
        version = (await channel.receive()).body["hello"]["version"]
        if version != VERSION:
            raise PlatformError(f"the gateway speaks version {version!r} of the protocol, this node {VERSION}")
        self._channel = channel
        self._connected.set()
        for sandbox_id, attached in list(self._attached.items()):
            try:
                if attached.given_over is not channel:
                    await self._give_over(attached)
            except PlatformError as error:
                _log.error("egress.not_attached", sandbox_id=sandbox_id, error=str(error))
        await self._send(channel, {"only": list(self._attached)})
        _log.debug("gateway.connected", sandboxes=len(self._attached))

    def _lost(self) -> None:
        self._channel = None
        self._connected.clear()
        for answered in self._pending.values():
            if not answered.done():
                answered.set_exception(ChannelClosed("the gateway is gone"))
                answered.exception()  # the caller may have been cancelled

    def _take(self, body: dict[str, Any]) -> None:
        answered = self._pending.get(body["id"])
        if answered is not None and not answered.done():
            answered.set_result(body["ok"])

    async def _send(self, channel: Channel, body: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Raises ChannelClosed, also when the gateway takes nothing any more."""
        try:
            async with asyncio.timeout(_SEND_WITHIN_S):
                try:
                    await channel.send(body, descriptors)
                except asyncio.CancelledError:
                    channel.close()  # it may wait there, with descriptors that are closed next
                    raise
        except TimeoutError as error:
            raise ChannelClosed("the gateway takes nothing") from error

    async def _give_over(self, attached: _Attached) -> None:
        """If there is a gateway; the next one gets it otherwise. Raises PlatformError: there is no authority."""
        channel, sandbox_id = self._channel, attached.sandbox_id
        if channel is None or self._attached.get(sandbox_id) is not attached:
            return
        attached.given_over = channel
        with contextlib.suppress(ChannelClosed):
            await self._bring_authority(channel, attached.network)
            if self._attached.get(sandbox_id) is not attached:
                return  # detached meanwhile
            message = {"attach": sandbox_id, "network": attached.network.as_json()}
            with _copies(attached.sockets) as descriptors:
                await self._send(channel, message, descriptors)

    async def _bring_authority(self, channel: Channel, network: NetworkPolicy) -> None:
        if network.rules and self._trusted is not channel:
            authority = self._known_authority()
            self._trusted = channel
            await self._send(channel, {"authority": {"certificate": authority.pem, "key": authority.key_pem}})

    def _known_authority(self) -> Authority:
        if self._authority is None:
            self._authority = self._make_authority()
        return self._authority

    # See EgressGateway

    def certificate(self) -> str:
        """Raises PlatformError."""
        return self._known_authority().pem

    async def attach(self, handle: WayOut, network: NetworkPolicy) -> bool:
        """Raises InvalidRequest (entries that were never checked), SandboxGone, PlatformError."""
        split_targets(network.allow_out, "allowOut")
        split_targets(network.deny_out, "denyOut")
        try:
            sockets = await handle.egress_sockets()
        except PlatformError:
            self._attached[handle.sandbox_id] = _Attached(handle.sandbox_id, network, None)
            raise
        if sockets is None:
            return False
        attached = self._attached[handle.sandbox_id] = _Attached(handle.sandbox_id, network, sockets)
        await self._give_over(attached)
        return True

    async def detach(self, sandbox_id: str) -> None:
        """Cuts what is open. Idempotent; never raises but CancelledError."""
        channel, attached = self._channel, self._attached.pop(sandbox_id, None)
        if attached is None:
            return
        if attached.sockets is not None:
            attached.sockets.connections.close()
            attached.sockets.questions.close()
        if channel is not None:
            with contextlib.suppress(ChannelClosed):
                await self._send(channel, {"detach": sandbox_id})

    def has(self, sandbox_id: str) -> bool:
        """Whether it has a way out."""
        return sandbox_id in self._attached

    async def update(self, sandbox_id: str, network: NetworkPolicy) -> None:
        """In force when this returns. Raises SandboxGone (it has no way out), PlatformError (no gateway answers)."""
        attached = self._attached.get(sandbox_id)
        if attached is None:
            raise SandboxGone(sandbox_id)
        attached.network = network
        is_attached = await self._ask({"update": sandbox_id, "network": network.as_json()}, network)
        if not is_attached and attached.sockets is None:
            raise PlatformError(f"the way out of sandbox {sandbox_id!r} was lost with the server that opened it")

    async def connections(self, sandbox_id: str) -> Sequence[NetworkConnection]:
        """Oldest first; none for a sandbox without a way out. Raises PlatformError: no gateway answers."""
        if sandbox_id not in self._attached:
            return []
        try:
            return CONNECTIONS.validate_python(await self._ask({"connections": sandbox_id}))
        except ValidationError as error:
            raise PlatformError("the gateway's answer makes no sense") from error

    async def _ask(self, body: dict[str, Any], network: NetworkPolicy | None = None) -> Any:
        """Over another connection where one is lost. Raises PlatformError."""
        number = next(self._numbers)
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                while True:
                    await self._connected.wait()
                    with contextlib.suppress(ChannelClosed):
                        return await self._ask_once(number, body, network)
                    await asyncio.sleep(_FIRST_PAUSE_S)
        except TimeoutError as error:
            raise PlatformError("the egress gateway does not answer") from error
        finally:
            self._pending.pop(number, None)

    async def _ask_once(self, number: int, body: dict[str, Any], network: NetworkPolicy | None) -> Any:
        channel = self._channel
        if channel is None:
            raise ChannelClosed("the gateway is gone")
        self._pending[number] = answered = asyncio.get_running_loop().create_future()
        if network is not None:
            await self._bring_authority(channel, network)
        await self._send(channel, {"id": number, **body})
        return await answered
