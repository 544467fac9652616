"""HTTP/2 frames that carry nothing are cheap for a stranger: so many are taken, then the connection ends."""

from __future__ import annotations

import asyncio
import struct
from contextlib import suppress
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, Event, ResponseReceived
from h2.exceptions import StreamClosedError
from h2.settings import SettingCodes

from atoll.edge.h2 import MAX_STREAMS, MAX_STREAMS_OF_STRANGERS, TOKENS, Http2Connection
from atoll.edge.routes import LiveRoutes
from atoll.edge.server import Edge
from support.effort import assert_linear

CALM, PROTOCOL = 11, 1
BIG = 3 * 2**20


async def control(scope: Any, receive: Any, send: Any) -> None:
    """401 without a key; else 3 MiB."""
    good = any(name == b"x-api-key" for name, _ in scope["headers"])
    await send({"type": "http.response.start", "status": 200 if good else 401, "headers": []})
    for _ in range(BIG // 65536 if good and scope["path"] == "/big" else 0):
        await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
    await send({"type": "http.response.body", "body": b"no"})


class Wire(asyncio.Transport):
    """What a TLS transport is to the edge; keeps what was written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("198.51.100.9", 4000)})
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


class Attacker:
    """A client that speaks to the edge in memory."""

    def __init__(self, window: int | None = None) -> None:
        self.edge = Edge(LiveRoutes(), control)
        self.wire = Wire()
        self.served = Http2Connection(self.edge)
        self.served.connection_made(self.wire)
        self.h2 = H2Connection(H2Configuration(client_side=True))
        self.h2.initiate_connection()
        if window is not None:
            self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.events: list[Event] = []
        self.talk()

    def talk(self) -> None:
        """Sends what the client has to say, takes what the edge has said."""
        self.served.data_received(self.h2.data_to_send())
        data, self.wire.written = bytes(self.wire.written), bytearray()
        self.events += self.h2.receive_data(data)

    async def settle(self) -> None:
        self.talk()
        for _ in range(20):
            await asyncio.sleep(0)
        self.talk()

    def ask(self, path: str = "/", *more: tuple[str, str]) -> int:
        stream = self.h2.get_next_available_stream_id()
        head = [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", path), *more]
        self.h2.send_headers(stream, head, end_stream=True)
        return stream

    @property
    def goodbye(self) -> int | None:
        found = next((one for one in self.events if isinstance(one, ConnectionTerminated)), None)
        return int(found.error_code or 0) if found is not None else None

    def statuses(self) -> list[bytes]:
        return [dict(one.headers or [])[b":status"] for one in self.events if isinstance(one, ResponseReceived)]


def frame(kind: int, body: bytes, stream: int = 0) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, 0]) + struct.pack(">I", stream) + body


FLOODS: dict[str, bytes] = {
    "ping": frame(6, bytes(8)),
    "settings": frame(4, b""),
    "changing settings": frame(4, struct.pack(">HI", 4, 0)) + frame(4, struct.pack(">HI", 4, 65535)),
    "windows of the connection": frame(8, struct.pack(">I", 1)),
    "windows of a stream": frame(8, struct.pack(">I", 1), 1),
    "priorities": frame(2, struct.pack(">IB", 0, 1), 3),
    "frames that nobody knows": frame(0xBE, b""),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_of_frames_that_carry_nothing_ends_the_connection(flood: bytes) -> None:
    attacker = Attacker(window=0)
    attacker.ask("/big", ("x-api-key", "k"))
    await attacker.settle()
    attacker.served.data_received(flood * 50)
    assert not attacker.wire.closed, "the control: some are taken"
    attacker.served.data_received(flood * (TOKENS + 3000))
    data = bytes(attacker.wire.written)
    assert data[-17:-8] == b"\0\0\x08\x07\0\0\0\0\0"
    assert int.from_bytes(data[-4:], "big") == CALM
    assert attacker.wire.closed
    attacker.wire.written.clear()
    attacker.served.data_received(flood * 1000)
    assert not attacker.wire.written, "what comes after it is not even looked at"


async def test_empty_pieces_of_a_body_are_counted_too() -> None:
    attacker = Attacker()
    stream = attacker.h2.get_next_available_stream_id()
    head = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", "/")]
    attacker.h2.send_headers(stream, head)
    attacker.talk()
    attacker.served.data_received(frame(0, b"", stream) * (TOKENS + 3000))
    assert attacker.wire.closed


async def test_a_client_that_takes_a_large_answer_piece_by_piece_is_served() -> None:
    """Two windows for each piece, as simple libraries do: more frames than a flood may have, and none of it is one."""
    client = Attacker(window=1000)
    client.ask("/big", ("x-api-key", "k"))
    got = windows = 0
    for _ in range(100_000):
        await asyncio.sleep(0)
        client.talk()
        for event in client.events:
            if isinstance(event, DataReceived) and event.flow_controlled_length:
                got += len(event.data or b"")
                for stream in (None, event.stream_id):
                    with suppress(StreamClosedError):
                        client.h2.increment_flow_control_window(event.flow_controlled_length, stream)
                    windows += 1
        client.events = [one for one in client.events if isinstance(one, ConnectionTerminated)]
        if got >= BIG or client.goodbye is not None:
            break
    assert (got, client.goodbye) == (BIG + 2, None)
    assert windows > TOKENS + 3000


async def test_strangers_have_few_streams_and_who_shows_a_good_key_has_many() -> None:
    stranger = Attacker(window=0)
    assert stranger.h2.remote_settings.max_concurrent_streams == MAX_STREAMS_OF_STRANGERS
    stranger.ask("/", ("x-other", "k"))
    await stranger.settle()
    assert stranger.statuses() == [b"401"]
    assert stranger.h2.remote_settings.max_concurrent_streams == MAX_STREAMS_OF_STRANGERS
    stranger.ask("/health", ("x-api-key", "anything"))
    await stranger.settle()
    assert stranger.h2.remote_settings.max_concurrent_streams == MAX_STREAMS_OF_STRANGERS, (
        "asked without a look at keys"
    )
    stranger.ask("/", ("x-api-key", "good"))
    await stranger.settle()
    assert stranger.h2.remote_settings.max_concurrent_streams == MAX_STREAMS


async def test_a_stranger_that_opens_more_streams_is_sent_away() -> None:
    attacker = Attacker(window=0)
    one = attacker.h2
    one.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 10_000
    one.remote_settings.acknowledge()
    for _ in range(MAX_STREAMS_OF_STRANGERS + 1):
        attacker.ask()
    attacker.served.data_received(one.data_to_send())
    assert attacker.wire.closed
    assert int.from_bytes(attacker.wire.written[-4:], "big") == PROTOCOL


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_what_a_flood_costs_does_not_grow_with_it(flood: bytes) -> None:
    def attack(size: int) -> None:
        attacker = Attacker(window=0)
        for _ in range(MAX_STREAMS_OF_STRANGERS - 1):
            attacker.ask()
        attacker.talk()
        for _ in range(0, size, 16384):
            attacker.served.data_received(flood * (16384 // len(flood)))

    assert_linear(attack, 16384)
