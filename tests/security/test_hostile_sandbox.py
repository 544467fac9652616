"""Bytes from a sandbox never hold up the server: while they are being judged, /health answers.

Each attack is sent by a program inside, through the gateway. The control: the same program with plain bytes is served.
"""

from __future__ import annotations

import json
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import CommandExitException, Sandbox

from atoll_attacks.outside import internet
from support.egress_world import Make, World, making, no_world, world
from support.host import requires, skip_without
from support.tiers import TIERS

FAULT = no_world()
pytestmark = [requires("namespaces"), pytest.mark.skipif(FAULT is not None, reason=str(FAULT))]
CLOSED = {"network": {"allow_out": ["good.test"], "deny_out": ["0.0.0.0/0"]}}
SEND = """
import socket, sys
good = socket.gethostbyname("good.test")
s = socket.create_connection((good, 80), 5)
s.sendall(HEAD)
s.settimeout(3)
try:
    print(s.recv(100).decode("latin-1"))
except OSError as error:
    print(error)
"""
PLAIN = b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n"
CUBIC = b"GET / HTTP/1.1\r\nHost:" + b" " * 12_000 + b"\rx\r\n\r\n"
SQUARE = b"GET / HTTP/1.1\r\nHost: good.test\r\nA: a" + b" " * 60_000 + b"\1\r\n\r\n"


@pytest.fixture(scope="module", params=TIERS)
def outside(
    request: pytest.FixtureRequest, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    skip_without(request.param)
    allowed = {"ATOLL_WEBHOOK_ALLOW_PRIVATE": "198.51.100.0/24"}
    with world(tmp_path_factory.mktemp("hostile"), templates_dir, allowed, tier=request.param) as made:
        yield made


@pytest.fixture
def make(outside: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with making(outside, monkeypatch) as create:
        yield create


def test_a_webhook_reaches_no_address_of_the_servers_own_machine(outside: World) -> None:
    """Not even where the operator opened the network around it: services behind a firewall listen there."""

    def hook(address: str) -> int:
        body = {"name": "n", "url": f"http://{address}:8099/", "events": ["sandbox.lifecycle.created"]}
        headers = {"X-API-Key": outside.server.api_key, "Content-Type": "application/json"}
        data = json.dumps({**body, "signatureSecret": "s3cret"}).encode()
        request = urllib.request.Request(f"{outside.api_url}/events/webhooks", data, headers)
        try:
            return int(urllib.request.urlopen(request, timeout=30).status)
        except urllib.error.HTTPError as refusal:
            return refusal.code

    assert hook(internet.GATEWAY) == 201, "the control"
    assert hook(internet.SERVER) == 403
    assert hook(internet.SERVER_TOO) == 403


def send(sandbox: Sandbox, head: bytes) -> str:
    program = shlex.quote(SEND.replace("HEAD", repr(head).replace(" " * 1000, "' + ' ' * 1000 + b'")))
    try:
        return sandbox.commands.run(f"python3 -c {program}", timeout=60, request_timeout=60).stdout
    except CommandExitException as error:
        return error.stderr


def healthy(outside: World) -> bool:
    with urllib.request.urlopen(f"{outside.api_url}/health", timeout=60) as answer:
        return bool(answer.status == 204)


@pytest.mark.parametrize("policy", [{}, CLOSED], ids=["open", "closed"])
@pytest.mark.parametrize("head", [CUBIC, SQUARE], ids=["cubic", "square"])
def test_a_dear_head_does_not_hold_up_the_server(
    outside: World, make: Make, policy: dict[str, Any], head: bytes
) -> None:
    sandbox = make(**policy)
    assert "200 OK" in send(sandbox, PLAIN), "the control"
    send(sandbox, head)
    assert healthy(outside)
    assert "200 OK" in send(sandbox, PLAIN)


ASK = """
import socket, struct, sys, time
from concurrent.futures import ThreadPoolExecutor
labels = b"".join(bytes([len(l)]) + l.encode() for l in "x.evil.test".split(".")) + b"\\0"
question = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">2H", 1, 1)
def many(_):
    s = socket.create_connection(("8.8.8.8", 53), 10)
    s.settimeout(10)
    s.sendall((struct.pack(">H", len(question)) + question) * 32)
    got = 0
    while got < 32 * (len(question) + 2):
        data = s.recv(65536)
        if not data:
            break
        got += len(data)
    return got // (len(question) + 2)
began = time.monotonic()
with ThreadPoolExecutor(COUNT) as pool:
    answered = sum(pool.map(many, range(COUNT)))
print(answered, time.monotonic() - began)
"""


def test_questions_over_tcp_have_the_pace_of_all_questions(make: Make) -> None:
    """A burst is answered at once; what comes beyond it takes its time: 300 a second, on a slow machine less."""
    sandbox = make(**CLOSED)
    program = shlex.quote(ASK.replace("COUNT", "2"))
    answered, _ = sandbox.commands.run(f"python3 -c {program}", timeout=60).stdout.split()
    assert int(answered) == 64, "the control"
    program = shlex.quote(ASK.replace("COUNT", "40"))
    answered, seconds = sandbox.commands.run(f"python3 -c {program}", timeout=60).stdout.split()
    assert int(answered) == 40 * 32
    assert float(seconds) > (40 * 32 - 2 * 256) / 300 - 0.5
