"""A client that stops reading stalls what it reads and nothing else: commands, downloads, ports, over plain HTTP.

Nothing here is timed. What a slow client does not read is far more than all buffers on the way hold, so that its other
end cannot be done before it reads on; and everything else is asked for to its end in between.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import struct
import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from sdk_support import eventually

from atoll.wire.envd import process
from support.tiers import one_tier

pytestmark = one_tier("the edge and the guest hold the bytes, the same programs in every tier")

COUNT = 4_000_000
NUMBERS = f"seq {COUNT}"
"""31 MB, each line another, so that nothing lost or doubled goes unnoticed."""


def _whole() -> str:
    digest = hashlib.sha256()
    for start in range(1, COUNT + 1, 100_000):
        digest.update("".join(f"{number}\n" for number in range(start, start + 100_000)).encode())
    return digest.hexdigest()


def _fields(sandbox: Sandbox, port: int) -> dict[str, str]:
    return {
        "e2b-sandbox-id": sandbox.sandbox_id,
        "e2b-sandbox-port": str(port),
        "x-access-token": sandbox.connection_config.sandbox_headers["X-Access-Token"],
    }


def _slow_connection(server: Any) -> http.client.HTTPConnection:
    """Its kernel takes in little: what is not read stays on the other side."""
    address = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port)
    connection.sock = socket.socket()
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sock.settimeout(120)
    connection.sock.connect((address.hostname, address.port))
    return connection


def _events(response: http.client.HTTPResponse, encoding: str) -> Iterator[process.ProcessEvent]:
    """Of a Connect stream, one by one as they are asked for."""
    while head := response.read(5):
        flags, size = struct.unpack(">BI", head)
        data = response.read(size)
        if flags & 2:
            assert "error" not in json.loads(data or b"{}"), data
            return
        kind = process.StartResponse
        message = kind.from_binary(data) if encoding == "proto" else kind.from_json(data)
        assert message.event is not None
        yield message.event


def _others_go_on(server: Any, sandbox: Sandbox) -> None:
    for number in range(5):
        assert sandbox.commands.run(f"echo {number}").stdout == f"{number}\n"
        sandbox.files.write("note", f"note {number}")
        assert sandbox.files.read("note") == f"note {number}"
    # Control: as much as the slow one does not read passes by, through the same server and the same guest.
    passing = hashlib.sha256()
    sandbox.commands.run(NUMBERS, on_stdout=lambda text: passing.update(text.encode()), timeout=120)
    assert passing.hexdigest() == _whole()
    assert [one.sandbox_id for one in Sandbox.list().next_items()].count(sandbox.sandbox_id) == 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("encoding", ["json", "proto"])
def test_a_command_whose_reader_stops_waits_and_everything_else_goes_on(
    server: Any, sandbox: Sandbox, encoding: str
) -> None:
    request = process.StartRequest(
        process=process.ProcessConfig(cmd="/bin/bash", args=["-c", f"{NUMBERS} && touch finished"])
    )
    message = request.to_binary() if encoding == "proto" else request.to_json()
    connection = _slow_connection(server)
    fields = _fields(sandbox, 49983) | {"content-type": f"application/connect+{encoding}"}
    connection.request("POST", "/process.Process/Start", struct.pack(">BI", 0, len(message)) + message, fields)
    response = connection.getresponse()
    assert response.status == 200
    events = _events(response, encoding)
    assert next(events).start is not None
    digest = hashlib.sha256()
    first = next(events)
    assert first.data is not None
    digest.update(first.data.stdout)

    _others_go_on(server, sandbox)
    assert not sandbox.files.exists("finished"), "the command ran on although nobody read what it printed"

    end = None
    for event in events:
        if event.data is not None:
            digest.update(event.data.stdout)
        end = event.end or end
    assert end is not None
    assert end.exit_code == 0
    assert digest.hexdigest() == _whole()
    assert sandbox.files.exists("finished")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("port", "path"), [(49983, "/files?path=numbers"), (8123, "/numbers")])
def test_a_download_whose_reader_stops_waits_and_everything_else_goes_on(
    server: Any, sandbox: Sandbox, port: int, path: str
) -> None:
    sandbox.commands.run(f"{NUMBERS} > numbers", timeout=120)
    sandbox.commands.run("python3 -m http.server 8123", background=True)
    fields = _fields(sandbox, port)
    eventually(lambda: httpx.head(f"{server.url}{path}", headers=fields).status_code == 200, what="the server is up")
    connection = _slow_connection(server)
    connection.request("GET", path, headers=fields)
    response = connection.getresponse()
    assert response.status == 200
    digest = hashlib.sha256(response.read(1000))

    _others_go_on(server, sandbox)
    other = httpx.get(f"{server.url}{path}", headers=fields, timeout=120)
    assert hashlib.sha256(other.content).hexdigest() == _whole()

    while piece := response.read(1 << 16):
        digest.update(piece)
    assert digest.hexdigest() == _whole()
