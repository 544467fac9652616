"""What this server does not do yet is an error that the SDK shows, with what to do instead; nothing is lost over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2b import AsyncSandbox, Sandbox, SandboxException, SandboxNotFoundException, Volume
from e2b.exceptions import NotFoundException
from e2b_code_interpreter import Sandbox as Interpreter

from support.tiers import one_tier

pytestmark = one_tier("refused by the control plane before a tier hears of it")

PAUSES: list[dict[str, Any]] = [
    {"on_timeout": "pause"},
    {"on_timeout": "pause", "auto_resume": True},
    {"on_timeout": {"action": "pause", "mode": "filesystem"}},
]


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("lifecycle", PAUSES)
@pytest.mark.parametrize("kind", [Sandbox, Interpreter])
def test_a_pause_at_the_timeout_is_refused_before_anything_is_made(kind: Any, lifecycle: dict[str, Any]) -> None:
    before = Sandbox.list().next_items()
    with pytest.raises(SandboxException, match=r'400: pausing .* not supported .* on_timeout="kill"'):
        kind.create(lifecycle=lifecycle)
    assert {one.sandbox_id for one in Sandbox.list().next_items()} <= {one.sandbox_id for one in before}


@pytest.mark.usefixtures("server")
async def test_the_asynchronous_sdk_shows_it_too() -> None:
    with pytest.raises(SandboxException, match='on_timeout="kill"'):
        await AsyncSandbox.create(lifecycle={"on_timeout": "pause"})


CALLS: list[tuple[str, Callable[[Sandbox], Any]]] = [
    ("pausing sandboxes", lambda sandbox: sandbox.pause()),
    ("pausing sandboxes", lambda sandbox: Sandbox.pause(sandbox.sandbox_id)),
    ("pausing sandboxes", lambda sandbox: sandbox.beta_pause()),
    ("snapshots", lambda sandbox: sandbox.create_snapshot()),
    ("forking sandboxes", lambda sandbox: sandbox.fork()),
    ("volumes", lambda _: Volume.create("mine")),
    ("volumes", lambda _: Volume.list()),
    ("volumes", lambda _: Volume.connect("mine")),
    ("volumeMounts", lambda _: Sandbox.create(volume_mounts={"/data": "mine"})),
    ("mcp", lambda _: Sandbox.create(mcp={"exa": {"apiKey": "k"}})),
    ("network.egressProxy", lambda _: Sandbox.create(network={"egress_proxy": {"address": "proxy.test:1080"}})),
]


@pytest.mark.parametrize(("what", "call"), CALLS)
def test_a_call_that_is_not_supported_says_so_and_never_not_found(
    sandbox: Sandbox, what: str, call: Callable[[Sandbox], Any]
) -> None:
    with pytest.raises(Exception, match=rf"{what}.* not supported by this server") as caught:
        call(sandbox)
    assert not isinstance(caught.value, SandboxNotFoundException | NotFoundException)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"
