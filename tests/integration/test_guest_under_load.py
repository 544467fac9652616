"""The guest with much at once: a gigabyte out, a file of two, two hundred commands, ends that nobody awaited."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import urllib.parse
from typing import Any

import httpx
import pytest
from e2b import AsyncSandbox, CommandExitException, Sandbox
from sdk_support import eventually

from support.tiers import one_tier

pytestmark = one_tier("the bounds are those of the guest, the same program in every tier; the load takes minutes")

GIB = 1 << 30
PLENTY = 160 << 20
"""Bytes. What a guest and the programs of these tests need by far; a copy of what passes through would not fit."""


class Highest:
    """Watches a sandbox's memory from the host's side while something goes on."""

    def __init__(self, server: Any, sandbox_id: str) -> None:
        self._url = f"{server.url}/sandboxes/metrics?sandbox_ids={sandbox_id}"
        self._keys = {"X-API-Key": server.api_key}
        self._sandbox_id = sandbox_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.used = 0
        self.readings = 0

    def _watch(self) -> None:
        while not self._ended.wait(0.3):
            answer = httpx.get(self._url, headers=self._keys, timeout=60).json()
            self.used = max(self.used, answer["sandboxes"][self._sandbox_id]["memUsed"])
            self.readings += 1

    def __enter__(self) -> Highest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def _start_raw(server: Any, sandbox: Sandbox, command: str) -> socket.socket:
    """A command's stream as bytes: the SDK would keep all of it."""
    address = urllib.parse.urlsplit(server.url)
    body = json.dumps({"process": {"cmd": "/bin/bash", "args": ["-l", "-c", command]}}).encode()
    message = b"\0" + struct.pack(">I", len(body)) + body
    head = (
        f"POST /process.Process/Start HTTP/1.1\r\nhost: x\r\ne2b-sandbox-id: {sandbox.sandbox_id}\r\n"
        f"e2b-sandbox-port: 49983\r\nx-access-token: {sandbox.connection_config.sandbox_headers['X-Access-Token']}\r\n"
        "content-type: application/connect+json\r\nconnect-protocol-version: 1\r\n"
        f"content-length: {len(message)}\r\n\r\n"
    )
    sock = socket.create_connection((address.hostname, address.port), timeout=60)
    sock.sendall(head.encode() + message)
    return sock


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_gigabyte_of_output_passes_in_bounded_memory(server: Any, sandbox: Sandbox) -> None:
    with Highest(server, sandbox.sandbox_id) as memory:
        received, tail = 0, b""
        with _start_raw(server, sandbox, "head -c 1G /dev/zero | tr '\\0' x; echo THE-END >&2") as sock:
            while b'"end"' not in tail:
                piece = sock.recv(1 << 20)
                assert piece, "the stream ended early"
                received += len(piece)
                tail = (tail + piece)[-4096:]
    assert received > GIB * 4 / 3  # base64
    assert b'"exitCode":0' in tail or b'"exited":true' in tail
    assert memory.readings > 0
    assert memory.used < PLENTY


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_file_of_two_gigabytes_is_streamed_in_bounded_memory(server: Any, sandbox: Sandbox) -> None:
    """Beyond 2^31 bytes, the most that one `sendfile` takes."""
    sandbox.commands.run("truncate -s 2G big && printf end >> big")
    with Highest(server, sandbox.sandbox_id) as memory:
        size, tail = 0, b""
        for piece in sandbox.files.read("big", format="stream", request_timeout=200):
            size += len(piece)
            tail = (tail + piece)[-3:]
    assert (size, tail) == (2 * GIB + 3, b"end")
    assert memory.used < PLENTY


@pytest.mark.timeout(200)
async def test_two_hundred_commands_at_once_all_answer(async_sandbox: AsyncSandbox) -> None:
    results = await asyncio.gather(
        *(async_sandbox.commands.run(f"sleep 0.5; echo {number}", timeout=150) for number in range(200))
    )
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(200)]
    assert await async_sandbox.commands.list() == []


def test_the_end_of_a_command_is_kept_for_whoever_comes_late(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("echo unheard; exit 7", background=True)
    handle.disconnect()
    eventually(lambda: not sandbox.commands.list(), what="the command has ended")
    with pytest.raises(CommandExitException) as late:
        sandbox.commands.connect(handle.pid).wait()
    assert late.value.exit_code == 7


def test_ten_thousand_entries_with_names_of_any_bytes_are_listed(sandbox: Sandbox) -> None:
    script = (
        "import os\n"
        "os.mkdir(b'many')\n"
        "for n in range(10_000): open(b'many/%05d' % n, 'w').close()\n"
        "for name in (b'caf\\xe9', 'wörld'.encode(), b'new\\nline', b'sp ace', b'\\xf0\\x9f\\xa6\\x86'):\n"
        "    open(b'many/' + name, 'w').close()\n"
    )
    sandbox.files.write("make.py", script)
    sandbox.commands.run("python3 make.py")
    names = [entry.name for entry in sandbox.files.list("many")]
    assert len(names) == 10_005
    assert {"wörld", "new\nline", "sp ace", "🦆", "00000", "09999"} <= set(names)
    assert sandbox.files.remove("many") is None
    assert not sandbox.files.exists("many")


def test_a_file_is_asked_for_in_parts_and_only_if_it_changed(server: Any, sandbox: Sandbox) -> None:
    sandbox.files.write("page", "0123456789" * 1000)
    url = sandbox.download_url("page")
    whole = httpx.get(url, headers={"Accept-Encoding": "identity"})
    assert whole.headers["accept-ranges"] == "bytes"
    part = httpx.get(url, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.text) == (206, "56789")
    assert part.headers["content-range"] == "bytes 5-9/10000"
    assert httpx.get(url, headers={"Range": "bytes=20000-"}).status_code == 416
    again = httpx.get(url, headers={"If-Modified-Since": whole.headers["last-modified"]})
    assert (again.status_code, again.content) == (304, b"")
    packed = httpx.get(url, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.text == whole.text


def test_files_are_composed_and_keep_their_order(server: Any, sandbox: Sandbox) -> None:
    for number in range(3):
        sandbox.files.write(f"part-{number}", f"{number}" * 10)
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": sandbox.connection_config.sandbox_headers["X-Access-Token"],
    }
    order = {"source_paths": [f"part-{number}" for number in range(3)], "destination": "whole"}
    answer = httpx.post(f"{server.url}/files/compose", json=order, headers=headers)
    assert answer.status_code == 200, answer.text
    assert sandbox.files.read("whole") == "0" * 10 + "1" * 10 + "2" * 10
