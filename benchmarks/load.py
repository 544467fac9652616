"""Load: `python benchmarks/load.py [--streams 1000] [--commands 200] [--seconds 10] [--no-readme]`.

One server, four sandboxes: a thousand process streams open (each attached to a running command), 200 commands at once
again and again, one reader that never reads, and beside all that small requests (GET /health of the guest of a fifth
sandbox, GET of that sandbox at the control plane) timed one after the other. The same requests, idle, are the floor.
Clients run in a process of their own, but on the same machine: the figures include them.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import machine
import render
from e2b import AsyncSandbox
from measure import Row, percentile, summarise
from server import ENVD, BenchServer, serving

ROOT = Path(__file__).resolve().parent.parent
SANDBOXES = 4
COMMAND_S = 120.0
OPENING = 50


class Http:
    """One HTTP/1.1 connection, as lean as it can be: the client must not be what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @staticmethod
    async def connect(server: BenchServer) -> Http:
        host, port = server.address
        return Http(*await asyncio.open_connection(host, port, limit=1 << 20))

    async def send(self, method: str, path: str, fields: dict[str, str], body: bytes = b"") -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body
        )
        await self.writer.drain()

    async def head(self) -> bytes:
        answer = await self.reader.readuntil(b"\r\n\r\n")
        if not answer.split(b" ", 2)[1].startswith(b"2"):
            raise RuntimeError(f"the server answered {answer[:200]!r}")
        return answer.lower()

    async def small(self, path: str, fields: dict[str, str]) -> float:
        """A small GET on the kept connection; milliseconds."""
        began = time.perf_counter()
        await self.send("GET", path, fields)
        answer = await self.head()
        if b"content-length: " in answer:
            size = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
            await self.reader.readexactly(size)
        return (time.perf_counter() - began) * 1000

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readline(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]

    def close(self) -> None:
        self.writer.close()


def routed(sandbox: AsyncSandbox) -> dict[str, str]:
    token = sandbox.connection_config.sandbox_headers.get("X-Access-Token", "")
    return {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": str(ENVD), "x-access-token": token}


async def start(server: BenchServer, sandbox: AsyncSandbox, method: str, message: object) -> Http:
    """Opens a process stream and reads its head."""
    http = await Http.connect(server)
    body = json.dumps(message).encode()
    fields = {**routed(sandbox), "content-type": "application/connect+json", "connect-protocol-version": "1"}
    await http.send("POST", f"/process.Process/{method}", fields, b"\0" + len(body).to_bytes(4, "big") + body)
    await http.head()
    return http


async def command(server: BenchServer, sandbox: AsyncSandbox, word: str) -> None:
    """Runs `echo word` and checks all of its answer."""
    process = {"cmd": "/bin/echo", "args": [word]}
    http = await start(server, sandbox, "Start", {"process": process, "stdin": False})
    try:
        body = b"".join([chunk async for chunk in http.chunks()])
    finally:
        http.close()
    if base64.b64encode(f"{word}\n".encode()) not in body or b'"exited":true' not in body.replace(b" ", b""):
        raise RuntimeError(f"`echo {word}` answered {body!r}")


class Load:
    """What is kept going while the small requests are timed."""

    def __init__(self, server: BenchServer, sandboxes: list[AsyncSandbox]) -> None:
        self.server = server
        self.sandboxes = sandboxes
        self.streams: list[Http] = []
        self.ran = 0

    async def open_streams(self, count: int) -> None:
        """`count` streams, spread over the sandboxes, each attached to a command that goes on."""
        handles = [await one.commands.run("exec sleep 3600", background=True, timeout=0) for one in self.sandboxes]

        async def attach(n: int) -> None:
            where = n % len(handles)
            selector = {"process": {"pid": handles[where].pid}}
            self.streams.append(await start(self.server, self.sandboxes[where], "Connect", selector))

        for first in range(0, count, OPENING):
            await asyncio.gather(*(attach(n) for n in range(first, min(count, first + OPENING))))

    async def commands(self, at_once: int, until: float) -> None:
        while time.monotonic() < until:
            words = [f"w{self.ran + n}" for n in range(at_once)]
            async with asyncio.timeout(COMMAND_S):
                await asyncio.gather(
                    *(command(self.server, self.sandboxes[n % SANDBOXES], word) for n, word in enumerate(words))
                )
            self.ran += at_once

    def closed(self) -> int:
        """Streams that the server ended: each would be an error."""
        return sum(stream.reader.at_eof() for stream in self.streams)


async def timings(server: BenchServer, sandbox: AsyncSandbox, until: float, subject: str) -> list[Row]:
    guest, control = await Http.connect(server), await Http.connect(server)
    key = {"x-api-key": server.api_key}
    rows: list[Row] = []
    while time.monotonic() < until:
        n = len(rows)
        rows.append(Row("small request to a guest", subject, n, await guest.small("/health", routed(sandbox)), "ms"))
        path = f"/sandboxes/{sandbox.sandbox_id}"
        rows.append(Row("small request to the control plane", subject, n, await control.small(path, key), "ms"))
        await asyncio.sleep(0.005)
    guest.close()
    control.close()
    return rows


async def measure(server: BenchServer, arguments: argparse.Namespace) -> tuple[list[Row], dict[str, object]]:
    sandboxes = [await AsyncSandbox.create(timeout=1800) for _ in range(SANDBOXES)]
    load = Load(server, sandboxes)
    aside = await AsyncSandbox.create(timeout=1800)
    rows = await timings(server, aside, time.monotonic() + arguments.seconds / 2, "idle")
    began = time.monotonic()
    await load.open_streams(arguments.streams)
    opened_s = time.monotonic() - began
    # A reader that never reads: 200 MB wait for it in its sandbox, not in the server.
    flood = {"cmd": "/bin/sh", "args": ["-c", "head -c 200000000 /dev/zero"]}
    slow = await start(server, sandboxes[1], "Start", {"process": flood, "stdin": False})
    slow.writer.transport.pause_reading()  # type: ignore[attr-defined]
    until = time.monotonic() + arguments.seconds
    _, loaded = await asyncio.gather(
        load.commands(arguments.commands, until), timings(server, aside, until, "under load")
    )
    facts: dict[str, object] = {
        "streams": len(load.streams), "streams_lost": load.closed(), "commands_at_once": arguments.commands,
        "commands_run": load.ran, "open_s": round(opened_s, 2), "server_rss_mb": round(rss_mb(server.pid)),
    }  # fmt: skip
    for stream in [*load.streams, slow]:
        stream.close()
    for sandbox in [*sandboxes, aside]:
        await sandbox.kill()
    return rows + loaded, facts


def rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def told(facts: dict[str, object], rows: list[Row]) -> str:
    """The README's lines."""
    lines = [
        f"Under load ({facts['streams']} open streams, {facts['streams_lost']} lost; {facts['commands_run']} commands, "
        f"{facts['commands_at_once']} at once; one reader that never reads; clients on the same machine; "
        f"server {facts['server_rss_mb']} MB):",
        "",
        "| | p50 | p95 | p99 |",
        "|---|---|---|---|",
    ]
    for line in summarise(rows):
        values = [row.value for row in rows if (row.benchmark, row.subject) == (line.benchmark, line.subject)]
        p99 = percentile(values, 99)
        lines.append(f"| {line.benchmark}, {line.subject} | {line.p50:.2f} ms | {line.p95:.2f} ms | {p99:.2f} ms |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--commands", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--isolation", default="auto")
    parser.add_argument("--no-readme", action="store_true", help="leave results and README alone")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16384)), hard))
    with serving(arguments.isolation) as server:
        os.environ.update(E2B_API_KEY=server.api_key, E2B_API_URL=server.url, E2B_SANDBOX_URL=server.url)
        rows, facts = asyncio.run(measure(server, arguments))
    text = told(facts, rows)
    print(text)
    if not arguments.no_readme:
        render.write(ROOT / "benchmarks" / "results", {**machine.facts(), **facts}, rows, name="load")
        render.into_readme(ROOT / "README.md", text, mark="load")
    return 1 if facts["streams_lost"] else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
