"""Snapshots and forks by the published SDKs: what is kept, what a child has of its own, what the source notices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from e2b import AsyncSandbox, Sandbox, SandboxException, Template
from e2b.exceptions import InvalidArgumentException
from sdk_support import eventually

from support.tiers import one_tier

pytestmark = pytest.mark.timeout(180)

# Renamed into place: a reader never sees the file between its truncation and its number.
COUNTING = (
    "while sleep 0.05; do n=$((n+1)); echo $n > /home/user/count.new; mv /home/user/count.new /home/user/count; done"
)


@pytest.fixture
def name() -> str:
    """A name that no other test gives."""
    return f"s{uuid4().hex[:12]}"


def _count(sandbox: Sandbox) -> int:
    return int(sandbox.commands.run("cat /home/user/count 2>/dev/null || echo 0").stdout or 0)


def test_a_snapshot_is_of_its_moment_and_what_is_made_of_it_is_a_sandbox_of_its_own(
    create: Callable[..., Sandbox], tier: str, name: str
) -> None:
    sandbox = create(envs={"GIVEN": "by-create"})
    sandbox.files.write("/home/user/file", "before")
    sandbox.commands.run("rm /home/user/.bashrc; sudo touch /etc/mine; mkdir -p /home/user/a/b")
    sandbox.commands.run(COUNTING, background=True)
    eventually(lambda: _count(sandbox) > 0, what="the source counts")

    snapshot = sandbox.create_snapshot(f"{name}:v1")
    assert snapshot.names == [snapshot.snapshot_id]
    assert snapshot.snapshot_id.endswith(f"/{name}:v1")
    sandbox.files.write("/home/user/file", "after")
    counted = _count(sandbox)
    eventually(lambda: _count(sandbox) > counted, what="the source goes on")
    sandbox.kill()

    child, other = create(snapshot.snapshot_id), create(f"{name}:v1")
    for one in (child, other):
        assert one.files.read("/home/user/file") == "before"
        assert one.commands.run("test ! -e /home/user/.bashrc && ls -d /etc/mine /home/user/a/b").exit_code == 0
        assert one.commands.run("echo $GIVEN; hostname").stdout == f"by-create\n{one.sandbox_id}\n"
    drawn = "cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1"
    assert child.commands.run(drawn).stdout != other.commands.run(drawn).stdout
    # What ran goes on in gVisor; in namespaces a snapshot is of the files alone, and says so when memory is asked for.
    counted = _count(child)
    if tier == "gvisor":
        eventually(lambda: _count(child) > counted, what="what ran in the source goes on in the child")
    else:
        with pytest.raises(SandboxException, match="holds the disk, not what runs"):
            child.create_snapshot(mode="full")
    assert [one.snapshot_id for one in Sandbox.list_snapshots(name=name).next_items()] == [snapshot.snapshot_id]
    assert other.get_info().template_id == child.get_info().template_id

    # A snapshot of a child holds both layers; one without memory boots anew in each tier.
    child.files.write("/home/user/second", "2")
    second = child.create_snapshot(mode="filesystem")
    grandchild = create(second.snapshot_id)
    assert grandchild.commands.run("cat /home/user/file /home/user/second").stdout == "before2"
    counted = _count(grandchild)
    assert grandchild.commands.run("sleep 0.3; cat /home/user/count").stdout.strip() == str(counted)
    assert Sandbox.delete_snapshot(second.snapshot_id)
    assert not Sandbox.delete_snapshot(second.snapshot_id)


async def test_snapshots_are_listed_paged_named_anew_and_deleted(server: Any, name: str) -> None:
    sandbox = await AsyncSandbox.create()
    try:
        await sandbox.files.write("word", "one")
        first = await sandbox.create_snapshot(name)
        await sandbox.files.write("word", "two")
        again = await sandbox.create_snapshot(name)
        assert first.snapshot_id == again.snapshot_id
        nameless = await sandbox.create_snapshot()
        assert nameless.names == []
        of_sandbox = sandbox.list_snapshots(limit=1)
        found = []
        while of_sandbox.has_next:
            found += [one.snapshot_id for one in await of_sandbox.next_items()]
        assert sorted(found) == sorted([again.snapshot_id, nameless.snapshot_id])
        assert [one.snapshot_id for one in await AsyncSandbox.list_snapshots(name=name).next_items()] == [
            again.snapshot_id
        ]
        child = await AsyncSandbox.create(again.snapshot_id)
        assert await child.files.read("word") == "two"
        for snapshot in (again, nameless):
            assert await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)
            assert not await AsyncSandbox.delete_snapshot(snapshot.snapshot_id)
        assert await child.files.read("word") == "two"
        (fork,) = await sandbox.fork()
        assert isinstance(fork, AsyncSandbox)
        assert await fork.files.read("word") == "two"
        await fork.kill()
        await child.kill()
        with pytest.raises(SandboxException, match="404"):
            await AsyncSandbox.create(again.snapshot_id)
    finally:
        await sandbox.kill()


def test_a_fork_is_many_sandboxes_with_what_the_source_has_now(sandbox: Sandbox, tier: str) -> None:
    sandbox.files.write("word", "shared")
    sandbox.commands.run(COUNTING, background=True)
    eventually(lambda: _count(sandbox) > 0, what="the source counts")
    expires = sandbox.get_info().end_at
    children = sandbox.fork(timeout=60, count=3)
    try:
        assert all(isinstance(child, Sandbox) for child in children), children
        assert len({child.sandbox_id for child in children} | {sandbox.sandbox_id}) == 4
        for number, child in enumerate(children):
            assert child.files.read("word") == "shared"
            child.files.write("word", str(number))
            assert child.get_info().template_id == sandbox.get_info().template_id
            if tier == "gvisor":
                counted = _count(child)
                eventually(lambda c=child, n=counted: _count(c) > n, what="what ran goes on")
        assert [child.files.read("word") for child in children] == ["0", "1", "2"]
        assert sandbox.files.read("word") == "shared"
        assert sandbox.get_info().end_at == expires
    finally:
        for child in children:
            if isinstance(child, Sandbox):
                child.kill()


@one_tier("decided by the control plane")
def test_what_cannot_be_kept_is_refused(server: Any, sandbox: Sandbox, name: str) -> None:
    Template.build(Template().from_base_image().run_cmd("true"), name)
    for wrong, words in ((name, "409"), ("base", "400"), ("a b", "400"), ("other/mine", "403")):
        with pytest.raises(SandboxException, match=words):
            sandbox.create_snapshot(wrong)
    with pytest.raises(InvalidArgumentException):
        sandbox.fork(count=0)
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.api_key}, timeout=30) as client:
        path = f"/sandboxes/{sandbox.sandbox_id}"
        assert client.post(f"{path}/fork", json={"count": 101}).status_code == 400
        assert client.post("/sandboxes/unknown/snapshots", json={}).status_code == 404
        sandbox.pause()
        assert client.post(f"{path}/snapshots", json={}).status_code == 409
        assert client.post(f"{path}/fork", json={}).status_code == 409
    assert Sandbox.connect(sandbox.sandbox_id).commands.run("echo alive").stdout == "alive\n"


@one_tier("layers are folded by the same program in every tier")
def test_a_long_chain_of_snapshots_is_folded_and_shows_the_same(
    templates_dir: Path, create: Callable[..., Sandbox], name: str
) -> None:
    """Fourteen snapshots, each of a sandbox of the one before: whiteouts, opaque and renamed directories among them."""
    work = "cd /home/user; mkdir -p d; "
    steps = [
        "echo $N > f$N; echo $N > d/last; ln f$N l$N",
        "rm -f f$((N-4)); sudo rm -rf d; mkdir d; echo new$N > d/only",
        "sudo mv /usr/share/doc doc$N 2>/dev/null; sudo mkdir -p /usr/share/doc; chmod 6711 f$((N-2)) || true",
    ]
    images = templates_dir / ".images"
    before, expected, snapshot = set(images.iterdir()) if images.is_dir() else set(), "", None
    for number in range(14):
        sandbox = create(snapshot) if snapshot else create()
        sandbox.commands.run(f"N={number}; {work}{steps[number % len(steps)]}")
        snapshot = sandbox.create_snapshot(f"{name}:v{number}").snapshot_id
        expected = sandbox.commands.run("cd /home/user && cat f* l* d/* | md5sum; ls -R . | md5sum").stdout
        sandbox.kill()

    def folded() -> list[Any]:
        made = set(images.iterdir()) - before
        return [one for one in made if len(json.loads((one / "image.json").read_bytes()).get("superseded", ())) > 0]

    eventually(lambda: len(folded()) >= 2, what="chains of thirteen and fourteen layers are folded", within_s=60)
    last = create(snapshot)
    assert last.commands.run("cd /home/user && cat f* l* d/* | md5sum; ls -R . | md5sum").stdout == expected
    assert last.commands.run("cd /home/user; stat -c %h f12; ls d").stdout.split() == ["2", "only"]
    last.kill()


@one_tier("layers are folded by the same program in every tier")
@pytest.mark.timeout(600)
def test_a_chain_of_fifty_snapshots_outlives_kills_in_the_middle_of_folding(
    start_server: Callable[..., Any], templates_dir: Path
) -> None:
    server = start_server()
    options = {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url}
    images = templates_dir / ".images"
    before = set(images.iterdir()) if images.is_dir() else set()
    snapshot = None
    for number in range(50):
        sandbox = Sandbox.create(snapshot, timeout=300, **options)
        assert sandbox.commands.run("ls | wc -l").stdout.strip() == str(number), "what was answered before is there"
        sandbox.files.write(f"f{number}", f"{number}")
        snapshot = sandbox.create_snapshot(mode="filesystem").snapshot_id
        if number in (12, 13):
            node = server.pid_of("node")
            program = eventually(lambda of=node: _folding(of), what="the chain is being folded")
            os.kill(program if number == 12 else node, signal.SIGKILL)
            eventually(lambda of=program: not Path(f"/proc/{of}").exists(), what="the program has ended, with its node")
            eventually(sandbox.is_running, what="a node is there")
        assert sandbox.kill()

    def folded() -> bool:
        made = [json.loads((one / "image.json").read_bytes()) for one in set(images.iterdir()) - before]
        return any(one.get("superseded") for one in made)

    eventually(folded, what="a chain is folded after all", within_s=60)
    last = Sandbox.create(snapshot, timeout=300, **options)
    assert last.commands.run("cat $(ls -v)").stdout == "".join(map(str, range(50)))
    assert last.kill()


def _folding(node: int) -> int | None:
    """The program that folds layers for this node."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                b"fold import main" in (place / "cmdline").read_bytes()
                and f"PPid:\t{node}\n" in (place / "status").read_text()
            ):
                return int(place.name)
    return None
