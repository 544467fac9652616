"""Whatever a sandbox answers to the console, it is one of our errors or values, bounded in size."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from atoll.console.guest import MAX_ANSWER, SandboxGuest
from atoll.console.terminals import KEPT, MOST, Terminals, _Terminal
from atoll.edge.routes import LiveRoutes
from atoll.model.errors import AtollError, PlatformError, SandboxNotFound
from atoll.model.seams import Route

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def whole(body: bytes, head: bytes = OK) -> bytes:
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def stream(*events: Any) -> bytes:
    """Connect's envelopes; bytes as they are."""
    pieces = [one if isinstance(one, bytes) else json.dumps({"event": one}).encode() for one in events]
    return whole(b"".join(struct.pack(">BI", 0, len(one)) + one for one in pieces))


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[LiveRoutes]:
    """Routes to a sandbox "box" whose guest answers this to everything, and closes; None: it says nothing."""

    serving: list[asyncio.Task[Any] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()  # until the client goes
        else:
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)

    async def dial(_port: int) -> socket.socket:
        found = socket.create_connection(server.sockets[0].getsockname())
        found.setblocking(False)
        return found

    routes = LiveRoutes()
    routes.add(Route("box", dial))
    async with server:
        yield routes
        await asyncio.gather(*(one for one in serving if one is not None), return_exceptions=True)


ANSWERS = {
    "nothing": b"",
    "no-http": b"\x00\x01\x02\r\n\r\n",
    "no-json": whole(b"<html>"),
    "a-list": whole(b"[]"),
    "deep": whole(b"[" * 100_000),
    "null-entries": whole(b'{"entries": null, "processes": null}'),
    "texts-for-entries": whole(b'{"entries": ["x"], "processes": [1]}'),
    "texts-for-numbers": whole(b'{"entries": [{"size": "x"}], "processes": [{"pid": {}}]}'),
    "too-large": whole(b" " * (MAX_ANSWER + 1)),
    "numbers-without-end": whole(b'{"entries": [{"size": 1e999}], "processes": [{"pid": 1e999}]}'),
    "too-many": whole(b'{"entries": [%s{}], "processes": [%s{}]}' % ((b"{}," * 40_000,) * 2)),
    "refused": whole(b'{"message": ["x"]}', b"HTTP/1.1 404 No\r\n"),
    "refused-in-half-a-pair": whole(b'{"message": "\\ud800"}', b"HTTP/1.1 404 No\r\n"),
    "refused-without-words": whole(b"\xff", b"HTTP/1.1 500 No\r\n"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize(
    "call", [lambda one: one.list_directory("/"), lambda one: one.processes()], ids=["files", "processes"]
)
async def test_a_wrong_answer_is_an_error(answer: bytes, call: Callable[[SandboxGuest], Awaitable[Any]]) -> None:
    async with answering(answer) as routes, SandboxGuest(routes, "box") as guest:
        with pytest.raises(AtollError) as caught:
            await call(guest)
        assert len(str(caught.value).encode()) < 1000


async def test_odd_entries_can_be_shown() -> None:
    answer = whole(b'{"entries": [{"name": "a\\ud800", "path": "/%s", "size": 1%s}]}' % (b"x" * 9000, b"0" * 4000))
    async with answering(answer) as routes, SandboxGuest(routes, "box") as guest:
        (found,) = await guest.list_directory("/")
        assert (found.name, len(found.path), found.size) == ("a?", 4096, 2**63)


async def test_a_guest_that_stands_still_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atoll.console.terminals.BEGIN_S", 0.05)
    monkeypatch.setattr("atoll.console.guest._FILE_S", {"timeout": {"read": 0.05}})
    async with answering(None) as routes:
        terminals = Terminals(partial(SandboxGuest, routes))
        with pytest.raises(PlatformError):
            await terminals.open("team", "box", 80, 24)
        with pytest.raises(PlatformError):
            await terminals.after("team", "box", 7, 0)
        async with asyncio.timeout(20):
            await terminals._tasks.wait()  # what followed them has been let go
        async with SandboxGuest(routes, "box") as guest:
            with pytest.raises(PlatformError, match="stands still"):
                async with guest.read("/x"):
                    pass


STREAMS = {
    "nothing": b"",
    "no-events": whole(b""),
    "no-json": stream(b"x"),
    "a-list": stream(b"[]"),
    "wrong-pid": stream({"start": {"pid": "x"}}),
    "wrong-data": stream({"start": {"pid": 7}}, {"data": {"pty": "?"}}, {"data": []}),
    "huge": whole(struct.pack(">BI", 0, 2**32 - 1)),
    "an-error": whole(struct.pack(">BI", 2, 30) + b'{"error": {"code": "not_foun"}'),
}


@pytest.mark.parametrize("answer", STREAMS.values(), ids=STREAMS)
async def test_a_wrong_stream_ends_the_terminal(answer: bytes) -> None:
    async with answering(answer) as routes:
        terminals = Terminals(partial(SandboxGuest, routes))
        try:
            seen = await terminals.after("team", "box", 7, 0)
            assert seen.end
        except AtollError:
            pass
        finally:
            await terminals.aclose()


async def test_a_terminal_keeps_its_newest_output() -> None:
    data = [{"data": {"pty": "QUFBQUFBQUFBQUFB" * 6000}} for _ in range(5)]
    end = {"data": {"pty": "WlpaWlpa"}}, {"end": {"status": "exit status 3"}}
    async with answering(stream({"start": {"pid": 7}}, *data, *end)) as routes:
        terminals = Terminals(partial(SandboxGuest, routes))
        seen = await terminals.after("team", "box", 7, 0)
        while seen.end is None:
            seen = await terminals.after("team", "box", 7, seen.next)
        everything = await terminals.after("team", "box", 7, 0)
        assert len(everything.data) == KEPT
        assert everything.data.endswith(b"AZZZZZZ")
        assert everything.end == "exit status 3"
        assert (await terminals.after("team", "box", 7, everything.next - 2)).data == b"ZZ"
        assert (await terminals.after("team", "box", 7, 10**9)).data == everything.data, "an offset that never was"
        await terminals.aclose()


async def test_a_team_with_many_terminals_loses_its_own() -> None:
    terminals = Terminals(partial(SandboxGuest, LiveRoutes()))
    for number in range(MOST * 2):
        terminals._keep(("box", number), _Terminal("many"))
        if number in (3, MOST + 3):
            terminals._keep(("other", number), _Terminal("few"))
    assert {("other", 3), ("other", MOST + 3), ("box", MOST * 2 - 1)} < terminals._followed.keys()
    assert len(terminals._followed) == MOST


async def test_what_a_guest_sends_is_read_at_the_sandboxs_rate() -> None:
    """Of a stream, of a file and of one answer: together."""
    came: list[tuple[str, int]] = []

    def spend(sandbox_id: str, size: int) -> float:
        came.append((sandbox_id, size))
        return 0.01

    async with answering(whole(b"x" * 200_000)) as routes, SandboxGuest(routes, "box", spend) as guest:
        began = asyncio.get_running_loop().time()
        async with guest.read("/x") as (length, pieces):
            assert sum([len(piece) async for piece in pieces]) == length == 200_000
        assert asyncio.get_running_loop().time() - began >= 0.01 * len(came) > 0
        assert {name for name, _ in came} == {"box"}
        assert sum(size for _, size in came) > 200_000


def test_a_sandbox_without_a_route_is_not_there() -> None:
    with pytest.raises(SandboxNotFound):
        SandboxGuest(LiveRoutes(), "box")
