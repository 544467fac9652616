"""What the other SDK tests do through one of the two Python clients only: the same through the other."""

from __future__ import annotations

import time
from typing import Any

import httpx
from e2b import AsyncSandbox, AsyncSecret, AsyncTemplate, PtySize, Sandbox, Template

from support.tiers import one_tier

EVERYTHING = "0.0.0.0/0"


def test_the_network_rules_of_a_running_sandbox_are_replaced(sandbox: Sandbox) -> None:
    sandbox.update_network({"deny_out": [EVERYTHING]})
    network: Any = sandbox.get_info().network
    assert network["deny_out"] == [EVERYTHING]
    sandbox.update_network({"allow_out": ["1.1.1.1"], "deny_out": [EVERYTHING]})
    network = sandbox.get_info().network
    assert network["allow_out"] == ["1.1.1.1"]


async def test_the_network_rules_of_a_running_sandbox_are_replaced_async(async_sandbox: AsyncSandbox) -> None:
    await async_sandbox.update_network({"deny_out": [EVERYTHING]})
    network: Any = (await async_sandbox.get_info()).network
    assert network["deny_out"] == [EVERYTHING]


@one_tier("the same requests as the synchronous client's, whose tests run in each tier")
async def test_secrets_are_kept_and_told_by_their_metadata_async(server: Any) -> None:
    name = f"key-{time.time_ns()}"
    made = await AsyncSecret.create(name, "v", {"a": "b"})
    assert (made.name, made.version, made.metadata) == (name, 1, {"a": "b"})
    assert (await AsyncSecret.update(name, "w")).version == 2
    assert (await AsyncSecret.get_info(made.secret_id)).updated_at >= made.created_at
    assert name in [one.name for one in await AsyncSecret.list().next_items()]
    assert AsyncSecret.fill(name) == f"${{e2b.secrets.{name}}}"
    assert await AsyncSecret.destroy(name)
    assert not await AsyncSecret.exists(name)


@one_tier("the same requests as the synchronous client's, whose tests run in each tier")
async def test_signed_urls_carry_files_both_ways_async(async_sandbox: AsyncSandbox) -> None:
    async with httpx.AsyncClient() as client:
        up = await client.post(async_sandbox.upload_url("up.txt"), files={"file": ("up.txt", b"sent")})
        assert up.status_code == 200
        down = await client.get(async_sandbox.download_url("up.txt"))
    assert down.content == b"sent"


@one_tier("the same requests as the synchronous client's, whose tests run in each tier")
async def test_metrics_are_sampled_async(async_sandbox: AsyncSandbox) -> None:
    deadline = time.monotonic() + 30
    while not (metrics := await async_sandbox.get_metrics()):
        assert time.monotonic() < deadline
    assert 0 < metrics[0].mem_used < metrics[0].mem_total


@one_tier("the same requests as the synchronous client's, whose tests run in each tier")
async def test_closing_stdin_ends_a_command_that_reads_it_async(async_sandbox: AsyncSandbox) -> None:
    handle = await async_sandbox.commands.run("cat", background=True, stdin=True)
    await async_sandbox.commands.send_stdin(handle.pid, "typed")
    await async_sandbox.commands.close_stdin(handle.pid)
    assert (await handle.wait()).stdout == "typed"


@one_tier("the same requests as the synchronous client's, whose tests run in each tier")
async def test_a_terminal_is_connected_to_again_async(async_sandbox: AsyncSandbox) -> None:
    shown = bytearray()
    first = await async_sandbox.pty.create(PtySize(rows=20, cols=70), on_data=lambda data: None)
    await first.disconnect()
    again = await async_sandbox.pty.connect(first.pid, on_data=shown.extend)
    await async_sandbox.pty.send_stdin(first.pid, b"stty size; exit\n")
    await again.wait()
    assert b"20 70" in shown


@one_tier("decided by the control plane")
def test_a_template_is_known_by_its_name(server: Any) -> None:
    assert Template.exists("base")
    assert Template.alias_exists("base")
    assert not Template.exists("nobody-made-this")


@one_tier("the same requests as the synchronous client's, whose tests run in each tier")
async def test_a_template_is_known_by_its_name_async(server: Any) -> None:
    assert await AsyncTemplate.exists("base")
    assert await AsyncTemplate.alias_exists("base")
    assert not await AsyncTemplate.exists("nobody-made-this")


def test_a_client_newer_than_the_tested_ones_is_served_and_logged_once(make_server: Any) -> None:
    server = make_server()
    headers = {"X-API-Key": server.api_key, "User-Agent": "e2b-python-sdk/99.0.1 (python)"}
    for _ in range(3):
        assert httpx.get(f"{server.url}/v2/sandboxes", headers=headers).status_code == 200
    told = [line for line in server.log_tail(1000).splitlines() if "newer than the newest tested" in line]
    assert len(told) == 1
    assert "99.0.1" in told[0]
