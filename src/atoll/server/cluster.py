"""The cluster's process: joins Ray's machines to the server (`atoll.cluster`). A program of its own, not a fork.

Ray has threads and child processes of its own, which the launcher and the front are to know nothing of. It speaks to
the control plane as an operator does, over REST.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from atoll.cli import logs
from atoll.cli.api import ask
from atoll.cli.environment import environ_for
from atoll.cluster.members import Members
from atoll.server.process import live
from atoll.tls.peers import nodes_authority

NAME = "cluster"

_STOP_S = 5.0
_PROGRAM = "from atoll.server.cluster import main; main()"


@dataclass(frozen=True, slots=True)
class ClusterOrders:
    """What the launcher hands to the program, through a descriptor: the key is no argument that any user could read."""

    parent: int
    writing: int
    data_dir: str
    address: str
    isolation: str
    url: str
    log_level: str
    log_format: str
    api_key: str = field(repr=False)


def become(orders: ClusterOrders) -> NoReturn:
    """Replaces this process, which the launcher has forked, with the program. Raises OSError."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = os.memfd_create("orders", 0)
    os.write(given, json.dumps(asdict(orders)).encode())
    os.lseek(given, 0, os.SEEK_SET)
    os.set_inheritable(orders.writing, True)
    os.execve(sys.executable, [sys.executable, "-P", "-c", _PROGRAM, str(given)], dict(os.environ))


def main() -> NoReturn:
    """The program."""
    with os.fdopen(int(sys.argv[1])) as given:
        orders = ClusterOrders(**json.load(given))
    logs.configure(orders.log_level, orders.log_format)

    async def work(ready: Callable[[], None], stop: asyncio.Event) -> None:
        members = Members(orders.address, orders.isolation, nodes_authority(Path(orders.data_dir)), _RestNodes(orders))
        ready()  # nobody waits for Ray
        ended = threading.Event()
        running = threading.Thread(target=members.run, args=(ended,), name="members", daemon=True)
        running.start()
        await stop.wait()
        ended.set()
        deadline = time.monotonic() + _STOP_S
        while running.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110 - Ray may not answer
            await asyncio.sleep(0.05)

    live(NAME, orders.parent, orders.writing, lambda: None, work)


class _RestNodes:
    """`cluster.members.Nodes` of the server that has started this process."""

    def __init__(self, orders: ClusterOrders) -> None:
        self._environ = environ_for(orders.url, orders.api_key)

    def put(self, node_id: str, host: str, port: int) -> None:
        ask(self._environ, "PUT", f"/nodes/{quote(node_id, safe='')}", {"host": host, "port": port})

    def remove(self, node_id: str) -> None:
        ask(self._environ, "DELETE", f"/nodes/{quote(node_id, safe='')}")
