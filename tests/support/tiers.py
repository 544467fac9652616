"""The isolation tiers as a parameter of tests, and what is known to differ between them.

Every test that uses the session's `server` runs once in each tier: `test_x[namespaces]`, `test_x[gvisor]`. One that
says nothing about a tier keeps the first alone, with its reason: `pytestmark = one_tier("…")`. What a tier does
differently stands in DIFFERENCES: such a test must fail there, as long as the line is here.
"""

from __future__ import annotations

import pytest

from support.host import TOOLS

TIERS = ("namespaces", "gvisor")

SERVER_ENVIRON = {"namespaces": {}, "gvisor": {"ATOLL_TOOLS_DIR": str(TOOLS)}}
"""What a server of a tier needs in its environment."""


def one_tier(reason: str) -> pytest.MarkDecorator:
    """Marks tests that run in the first tier alone; `reason` says why the other would show nothing new."""
    assert reason
    return pytest.mark.one_tier(reason)


def tiers_of(item: pytest.Function | pytest.Metafunc) -> tuple[str, ...]:
    """The tiers that a test runs in."""
    node = item.definition if isinstance(item, pytest.Metafunc) else item
    return TIERS[:1] if node.get_closest_marker("one_tier") else TIERS
