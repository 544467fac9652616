"""The limit on what a sandbox may send to its clients: kept for every kind of output together, and nothing is lost."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from e2b import Sandbox
from sdk_support import eventually

MIB = 1024 * 1024
RATE = 4 * MIB
BURST_S = 0.5


@pytest.fixture
def sandbox(make_server: Callable[..., Any]) -> Iterator[Sandbox]:
    server = make_server(options=["--end-sandboxes"], environ={"ATOLL_MAX_OUTPUT_MIB_S": str(RATE // MIB)})
    made = Sandbox.create(timeout=300, api_key=server.api_key, api_url=server.url, sandbox_url=server.url)
    yield made
    made.kill()


def test_output_of_files_commands_and_ports_keeps_one_rate_and_arrives_whole(sandbox: Sandbox) -> None:
    size = 4 * MIB
    sandbox.commands.run(f"mkdir w && head -c {size} /dev/urandom > w/file")
    expected = sandbox.commands.run("sha256sum w/file").stdout.split()[0]
    sandbox.commands.run("cd w && exec python3 -m http.server 8000", background=True, timeout=0)
    sandbox.commands.run("until : < /dev/tcp/127.0.0.1/8000; do sleep 0.05; done 2>/dev/null")
    came: dict[str, bytes] = {}

    def file() -> None:
        came["file"] = bytes(sandbox.files.read("w/file", format="bytes"))

    def port() -> None:
        config = sandbox.connection_config
        headers = {**config.sandbox_headers, "E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
        came["port"] = httpx.get(f"{config._sandbox_url}/file", headers=headers, timeout=120).content

    def command() -> None:
        came["command"] = sandbox.commands.run(f"head -c {size} /dev/zero | tr '\\0' x", timeout=120).stdout.encode()

    began = time.monotonic()
    threads = [threading.Thread(target=one) for one in (file, port, command)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    assert {name: hashlib.sha256(data).hexdigest() == expected for name, data in came.items() if name != "command"} == {
        "file": True,
        "port": True,
    }
    assert came["command"] == b"x" * size
    # A bound from below: no machine is too slow for it. (The last piece is not waited for.)
    assert took >= 3 * size / RATE - BURST_S - 0.5


def test_small_answers_go_on_while_a_flood_waits(sandbox: Sandbox) -> None:
    flood = sandbox.commands.run("yes", background=True, timeout=0)
    came = 0

    def read() -> None:
        nonlocal came
        for stdout, _, _ in flood:
            came += len(stdout or "")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        eventually(lambda: came > 2 * RATE, what="the flood has used up its rate")
        for number in range(5):
            assert sandbox.commands.run(f"echo {number}").stdout == f"{number}\n"
    finally:
        flood.kill()
        reader.join()
