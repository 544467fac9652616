"""A webhook's receiving end on loopback: keeps what comes, answers what the test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from atoll.control.events.outbound import parse_networks
from atoll.model.addresses import ForbiddenNetworks

LOOPBACK = ("127.0.0.0/8",)


def opened(networks: Sequence[str]) -> Callable[[], ForbiddenNetworks]:
    """What an `Outbound` may not reach whose operator has opened these."""
    return lambda: ForbiddenNetworks(private_allowed=parse_networks(networks))


@dataclass
class Receiver:
    """`statuses` are answered in turn, the last one from then on; 0 closes the connection without an answer."""

    url: str
    statuses: Sequence[int] = (200,)
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.received]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.received]

    async def wait_for(self, count: int) -> None:
        """Until so many came in all."""
        async with asyncio.timeout(30):
            while len(self.received) < count:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def receiver(*statuses: int) -> AsyncIterator[Receiver]:
    """Listens within the block."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers["content-length"]))
        status = made.statuses[min(len(made.received), len(made.statuses) - 1)]
        made.received.append((headers | {":line": head[0]}, body))
        if status:
            extra = "location: http://127.0.0.1:1/\r\n" if 300 <= status < 400 else ""
            writer.write(f"HTTP/1.1 {status} X\r\n{extra}content-length: 0\r\n\r\n".encode())
        writer.close()
        made.news.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made = Receiver(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=b", statuses or (200,))
    async with server:
        yield made
