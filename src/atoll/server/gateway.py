"""The egress gateway's process: what sandboxes send to the world passes through it, and it has next to no rights.

It begins as a program of its own, not as a fork: keys, database address and TLS keys of the server are never in its
memory or environment. It gets one listening socket, on which the node brings it sandboxes' sockets and policies
(`wire.egress`). Nothing of the host's files is in its root but Python, /etc and the trust store.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from atoll.cli import logs
from atoll.config import Settings
from atoll.egress.budget import Budget
from atoll.egress.forbidden import HostNetworks
from atoll.egress.gateway import EgressContext
from atoll.egress.registry import EgressRegistry
from atoll.model.errors import InvalidRequest
from atoll.model.network import Network, is_address, split_targets
from atoll.server.process import live
from atoll.server.rights import Rights, give_up
from atoll.server.watchdog import Watchdog
from atoll.wire.egress.server import GatewayServer
from atoll.wire.unix import accepting

NAME = "egress"
MEMORY_MIB = 2048

_PROGRAM = "from atoll.server.gateway import main; main()"
_ENVIRON = ("LANG", "LC_ALL", "TZ", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""What of the server's environment it gets: where programs and certificates lie."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What the launcher hands to the program, as its one argument. No secret: any user may read it."""

    parent: int
    listener: int
    writing: int
    user: int | None
    scratch: str
    allow_private: tuple[str, ...]
    registry_allow_private: tuple[str, ...]
    name_servers: tuple[str, ...]
    log_level: str
    log_format: str


def become(orders: Orders) -> NoReturn:
    """Replaces this process, which the launcher has forked, with the program. Raises OSError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the program has its own way with it
    for descriptor in (orders.listener, orders.writing):
        os.set_inheritable(descriptor, True)
    environ = {name: os.environ[name] for name in _ENVIRON if name in os.environ}
    os.execve(sys.executable, [sys.executable, "-P", "-c", _PROGRAM, json.dumps(asdict(orders))], environ)


def private_networks(settings: Settings) -> tuple[Network, ...]:
    """Those that the operator opened. Raises InvalidRequest for settings that make no sense."""
    networks = _networks(settings.egress_allow_private)
    _networks(settings.registry_allow_private, "ATOLL_REGISTRY_ALLOW_PRIVATE")
    for server in settings.name_servers:
        if not is_address(server):
            raise InvalidRequest(f"ATOLL_NAME_SERVERS takes IP addresses, not {server!r}")
    return networks


def _networks(entries: tuple[str, ...], setting: str = "ATOLL_EGRESS_ALLOW_PRIVATE") -> tuple[Network, ...]:
    networks, names = split_targets(entries, setting)
    if names:
        raise InvalidRequest(f"{setting} takes addresses and CIDR ranges, not {names[0]!r}")
    return networks


def main() -> NoReturn:
    """The program."""
    given = json.loads(sys.argv[1])
    lists = ("allow_private", "registry_allow_private", "name_servers")
    orders = Orders(**{**given, **{name: tuple(given[name]) for name in lists}})
    logs.configure(orders.log_level, orders.log_format)
    os.set_inheritable(orders.listener, False)
    listener = socket.socket(fileno=orders.listener)
    node = os.getuid()
    rights = Rights(orders.user, readable=tuple(_trust_store()), memory_mib=MEMORY_MIB)

    async def work(ready: Callable[[], None], stop: asyncio.Event) -> None:
        await _serve(listener, node, orders, ready, stop)

    live(NAME, orders.parent, orders.writing, lambda: give_up(rights, Path(orders.scratch)), work)


async def _serve(
    listener: socket.socket, node: int, orders: Orders, ready: Callable[[], None], stop: asyncio.Event
) -> None:
    forbidden = HostNetworks(_networks(orders.allow_private))
    opened = _networks((*orders.allow_private, *orders.registry_allow_private))
    context = EgressContext(
        forbidden,
        Budget.of_this_process(MEMORY_MIB),
        name_servers=orders.name_servers or None,
        for_registries=HostNetworks(opened),
    )
    registry = EgressRegistry(context)
    try:
        async with accepting(listener, GatewayServer(registry).serve, {node}), Watchdog(NAME):
            ready()
            await stop.wait()
    finally:
        await registry.aclose()


def _trust_store() -> Iterator[Path]:
    """Where certificates are looked for by which a server is believed, links and what they lead to."""
    places = ssl.get_default_verify_paths()
    for place in (places.cafile, places.capath, places.openssl_cafile, places.openssl_capath):
        if place is not None and os.path.exists(place):
            yield from (Path(place).absolute(), Path(place).resolve())
