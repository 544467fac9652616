"""What the tiers have in common is every other test's; here is what tells them apart, in each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from e2b import Sandbox
from e2b.exceptions import SandboxException

from support.server import ServerProcess
from support.tiers import DIFFERENCES, Difference


@pytest.fixture(scope="module")
def shared(server: ServerProcess) -> Iterator[Sandbox]:
    """One sandbox for all differences: each works in a directory of its own."""
    sandbox = Sandbox.create(timeout=600)
    yield sandbox
    sandbox.kill()


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.name)
def test_a_difference_is_as_the_document_says(shared: Sandbox, tier: str, difference: Difference) -> None:
    cwd = f"/home/user/{difference.name}"
    shared.files.make_dir(cwd)
    ran = shared.commands.run(f"{{ {difference.command}\n}} 2>&1; true", cwd=cwd)
    seen = difference.seen(tier)
    assert re.fullmatch(seen.pattern, ran.stdout.strip()), f"{seen.told}: {ran.stdout}"


def test_every_answer_names_the_tier(server: ServerProcess, sandbox: Sandbox, tier: str) -> None:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.api_key}) as client:
        detail = client.get(f"/sandboxes/{sandbox.sandbox_id}").json()
        listed = [one for one in client.get("/v2/sandboxes").json() if one["sandboxID"] == sandbox.sandbox_id]
    assert [detail["tier"], *(one["tier"] for one in listed)] == [tier, tier]


def test_a_create_may_name_its_tier_but_no_weaker_wall(create: Callable[..., Sandbox], tier: str) -> None:
    assert create(timeout=120, metadata={"atoll.tier": tier}).commands.run("echo here").stdout == "here\n"
    if tier == "gvisor":
        with pytest.raises(SandboxException, match="no weaker wall"):
            create(timeout=120, metadata={"atoll.tier": "namespaces"})


def test_links_are_listed_without_a_complaint(sandbox: Sandbox) -> None:
    listed = sandbox.commands.run("ln -s /etc/hostname file && ln -s nowhere none && ls -la && cp -a file copy")
    assert listed.stderr == ""
    assert listed.stdout.count(" -> ") == 2


def test_low_ports_can_be_served_by_root(sandbox: Sandbox) -> None:
    sandbox.commands.run("python3 -m http.server 80", background=True, user="root", cwd="/etc")
    command = "curl -s --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1/hostname"
    assert sandbox.commands.run(command, timeout=60).stdout.strip()


def test_a_sandbox_can_give_up_every_way_to_more_rights(create: Callable[..., Sandbox]) -> None:
    usual, strict = create(timeout=120), create(timeout=120, metadata={"atoll.no_new_privileges": "true"})
    assert usual.commands.run("sudo -n id -u").stdout == "0\n"
    copy = "cp /usr/bin/id /tmp/id; chmod 4755 /tmp/id; grep NoNewPrivs /proc/self/status || echo NoNewPrivs: 1"
    assert strict.commands.run(copy, user="root").stdout.split() == ["NoNewPrivs:", "1"]
    assert strict.commands.run("/tmp/id -u").stdout == "1000\n", "a set-uid program is like any other"
    refused = strict.commands.run("sudo -n id -u; true")
    assert refused.stdout == ""
    assert re.search(r"no new privileges|setuid|not allowed|effective uid", refused.stderr), refused.stderr
    with pytest.raises(SandboxException, match="only 'true' means something"):
        create(metadata={"atoll.no_new_privileges": "false"})
