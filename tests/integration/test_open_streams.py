"""A thousand open streams and two hundred commands at once through one server: none is lost, none fails. Untimed."""

from __future__ import annotations

import asyncio
import base64
import json
import resource
import struct
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from e2b import AsyncSandbox

from support.tiers import one_tier

pytestmark = one_tier("the server's streams; a thousand of them take a minute")

STREAMS = 1000
COMMANDS = 200
SANDBOXES = 4
AT_ONCE = 50


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """This process is the other end of every stream."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * STREAMS if hard == resource.RLIM_INFINITY else min(hard, 4 * STREAMS)
    if wanted < 2 * STREAMS:
        pytest.skip(f"the limit of open files (RLIMIT_NOFILE) is {hard}: too few for {STREAMS} streams")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Stream:
    """Attached to a command that runs, as raw bytes: the SDK's own client is not what is tested."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @staticmethod
    async def attach(server: Any, sandbox: AsyncSandbox, pid: int) -> Stream:
        """Returns when the guest has answered with the start event."""
        address = urllib.parse.urlsplit(server.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        body = json.dumps({"process": {"pid": pid}}).encode()
        message = struct.pack(">BI", 0, len(body)) + body
        token = sandbox.connection_config.sandbox_headers["X-Access-Token"]
        head = (
            f"POST /process.Process/Connect HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: {sandbox.sandbox_id}\r\n"
            f"e2b-sandbox-port: 49983\r\nx-access-token: {token}\r\ncontent-type: application/connect+json\r\n"
            f"content-length: {len(message)}\r\n\r\n"
        )
        writer.write(head.encode() + message)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        await reader.readuntil(b'"start"')
        return Stream(reader, writer)

    async def rest(self) -> bytes:
        """All up to the end of the answer."""
        data = await self._reader.readuntil(b"\r\n0\r\n\r\n")
        self._writer.close()
        return data


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("many_descriptors")
async def test_a_thousand_streams_stay_open_while_two_hundred_commands_run(server: Any) -> None:
    sandboxes = await asyncio.gather(*(AsyncSandbox.create(timeout=600) for _ in range(SANDBOXES)))
    try:
        waiting = [
            await sandbox.commands.run("read word; echo heard-$word", background=True, stdin=True, timeout=0)
            for sandbox in sandboxes
        ]
        gate = asyncio.Semaphore(AT_ONCE)

        async def attach(number: int) -> Stream:
            async with gate:
                return await Stream.attach(server, sandboxes[number % SANDBOXES], waiting[number % SANDBOXES].pid)

        streams = await asyncio.gather(*(attach(number) for number in range(STREAMS)))

        async def run(number: int) -> str:
            return (await sandboxes[number % SANDBOXES].commands.run(f"echo {number}", timeout=300)).stdout

        printed = await asyncio.gather(*(run(number) for number in range(COMMANDS)))
        assert printed == [f"{number}\n" for number in range(COMMANDS)]
        async with httpx.AsyncClient(headers={"X-API-Key": server.api_key}, timeout=60) as client:
            told = await asyncio.gather(*(client.get(f"{server.url}/sandboxes/{one.sandbox_id}") for one in sandboxes))
        assert [answer.status_code for answer in told] == [200] * SANDBOXES

        for number, sandbox in enumerate(sandboxes):
            await sandbox.commands.send_stdin(waiting[number].pid, f"word-{number}\n")
        ends = await asyncio.gather(*(stream.rest() for stream in streams))
        for number, end in enumerate(ends):
            assert base64.b64encode(f"heard-word-{number % SANDBOXES}\n".encode()) in end
            assert b'"end"' in end
            assert b'"error"' not in end
    finally:
        await asyncio.gather(*(sandbox.kill() for sandbox in sandboxes))
