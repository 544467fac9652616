"""What a line of the gateway's configuration means. The gateway itself: tests/integration/test_mcp_gateway.py."""

from __future__ import annotations

from typing import Any

import pytest

from atoll.images.recipes.mcp_gateway import Failed, wanted


def test_both_spellings_of_the_sdks_mean_the_same() -> None:
    python = wanted("github/a/b.c", {"run_cmd": "r", "install_cmd": "i", "envs": {"A": "1"}})
    assert python == wanted("github/a/b.c", {"runCmd": "r", "installCmd": "i", "envs": {"A": "1"}})
    assert python.install.endswith("https://github.com/a/b.c . && i")
    assert (python.run, python.name) == ("r", "b_c")


def test_a_package_is_run_by_the_program_of_its_name() -> None:
    scoped = wanted("npm/@scope/tool", {})
    assert (scoped.run, scoped.name) == ("node_modules/.bin/tool", "tool")
    assert scoped.install.endswith(" @scope/tool")
    assert wanted("pip/tool", {"package": "tool==1; id", "runCmd": "bin/other"}).install.endswith(" 'tool==1; id'")


@pytest.mark.parametrize(
    ("key", "settings", "reason"),
    [
        ("github/a/b", {}, "needs a runCmd"),
        ("github/a/b;id", {"runCmd": "r"}, "not known here"),
        ("github/a", {"runCmd": "r"}, "not known here"),
        ("npm/a b", {}, "not known here"),
        ("exa", {"apiKey": "k"}, "no Docker catalogue"),
        ("pip/a", [], "must be an object"),
        ("pip/a", {"envs": {"A": 1}}, "envs must map"),
        ("pip/a", {"package": 1}, "package must be a string"),
    ],
)
def test_what_cannot_be_started_is_named(key: str, settings: Any, reason: str) -> None:
    with pytest.raises(Failed, match=reason):
        wanted(key, settings)
