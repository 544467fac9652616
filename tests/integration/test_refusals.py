"""What this server does not do yet is an error that the SDK shows, with what to do instead; nothing is lost over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2b import Sandbox, SandboxNotFoundException
from e2b.exceptions import NotFoundException

from support.tiers import one_tier

pytestmark = one_tier("refused by the control plane before a tier hears of it")


CALLS: list[tuple[str, Callable[[Sandbox], Any]]] = [
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
