"""Bounds that nobody set: what one sandbox, one team and all together may have of a machine made tiny here."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox, SandboxException, Template
from e2b.exceptions import RateLimitException
from sdk_support import eventually

from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.disk import kept
from atoll.isolation.linux.disk.image import IMAGE
from support.tiers import SERVER_ENVIRON

USED_PIDS = 900
ENVIRON = {
    "ATOLL_USED_PIDS": str(USED_PIDS),
    "ATOLL_TOTAL_PIDS": "4000",
    "ATOLL_MAX_PIDS": "700",
    "ATOLL_TEAM_MEMORY_MIB": "2000",
    "ATOLL_TEAM_IMAGES_MIB": "64",
}
BOMB = (
    "import os, time\n"
    "while True:\n"
    "    try:\n"
    "        if os.fork() == 0: time.sleep(60); os._exit(0)\n"
    "    except OSError: time.sleep(0.01)\n"
)


@pytest.fixture
def tiny(make_server: Callable[..., Any], tier: str) -> Any:
    """A server on a machine that its operator has called tiny."""
    environ = {**SERVER_ENVIRON[tier], **ENVIRON}
    return make_server(options=["--isolation", tier, "--end-sandboxes"], environ=environ)


@pytest.fixture
def make(tiny: Any) -> Iterator[Callable[..., Sandbox]]:
    """`make(pids=…, memory=…)`: a sandbox of that size."""
    made: list[Sandbox] = []

    def one(**sizes: int) -> Sandbox:
        metadata = {f"atoll.{name}": str(size) for name, size in sizes.items()}
        where = {"api_key": tiny.api_key, "api_url": tiny.url, "sandbox_url": tiny.url}
        made.append(Sandbox.create(timeout=300, metadata=metadata, **where))
        return made[-1]

    yield one
    for sandbox in made:
        sandbox.kill()


def _pids_together() -> Iterator[tuple[int, int]]:
    """(in use, bound) of the group around all sandboxes, in every hierarchy that counts processes."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if kind.startswith("cgroup"):
            for group in Path(point).glob("atoll-*"):
                bound = group / "pids.max"
                if bound.exists() and bound.read_text().strip() == str(USED_PIDS):
                    yield int((group / "pids.current").read_text()), USED_PIDS


def test_a_request_beyond_the_maximum_is_wrong_and_a_sum_that_is_reached_means_come_again(
    tiny: Any, make: Callable[..., Sandbox]
) -> None:
    def ask(**metadata: str) -> httpx.Response:
        body = {"templateID": "base", "timeout": 60, "metadata": metadata}
        return httpx.post(f"{tiny.url}/sandboxes", json=body, headers={"X-API-Key": tiny.api_key}, timeout=60)

    beyond = ask(**{"atoll.pids": "701"})
    assert beyond.status_code == 400
    assert "701 is more than this server allows one sandbox, 700" in beyond.text
    huge = ask(**{"atoll.memory": "999999999"})
    assert huge.status_code == 400, "finite although nobody set it"
    first = make(memory=1500)
    with pytest.raises(RateLimitException, match=r"2000 MiB of memory together.*ask for less .metadata atoll\.memory"):
        make(memory=600)
    make(memory=400)
    first.kill()
    make(memory=1500)


def test_a_team_has_a_part_of_the_disk_for_its_templates_and_snapshots(
    tiny: Any, make: Callable[..., Sandbox], tier: str
) -> None:
    where = {"api_key": tiny.api_key, "api_url": tiny.url}
    sandbox = make(memory=512)
    sandbox.commands.run("head -c 66M /dev/urandom > big")
    first = sandbox.create_snapshot()
    build = Template().from_template("base").run_cmd("echo more > file")
    begin = (sandbox.create_snapshot, sandbox.fork, lambda: Template.build(build, "one-more", skip_cache=True, **where))
    for refused in begin:
        with pytest.raises(Exception, match=r"snapshots and paused sandboxes take \d+ MiB of disk and may take 64"):
            refused()
    assert sandbox.commands.run("echo on").stdout == "on\n"
    assert Sandbox.delete_snapshot(first.snapshot_id, **where)
    assert sandbox.create_snapshot().snapshot_id != first.snapshot_id, "with what it has deleted it may have 96"
    make(memory=256).pause()
    other = make(memory=256)
    if tier == "gvisor":  # which writes memory out
        with pytest.raises(RateLimitException, match="paused sandboxes take"):
            other.pause()
    other.pause(keep_memory=False)


def test_fork_bombs_in_several_sandboxes_leave_the_host_its_processes(tiny: Any, make: Callable[..., Sandbox]) -> None:
    bombers = [make(pids=600, memory=512) for _ in range(3)]
    if not list(_pids_together()):
        pytest.skip("no writable cgroup controller for processes")
    for sandbox in bombers:
        sandbox.commands.run(f"exec python3 -c '{BOMB}'", background=True, timeout=0)
    # One alone has 600 at most, three have 1800: the bound around all is what stops them.
    eventually(
        lambda: max(used for used, _ in _pids_together()) >= USED_PIDS * 9 // 10, what="bombs that fill it", within_s=60
    )
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert all(used <= bound for used, bound in _pids_together())
        assert subprocess.run(["true"], check=True).returncode == 0
    assert httpx.get(f"{tiny.url}/health", timeout=20).status_code < 300
    for sandbox in bombers:
        sandbox.kill()
    assert make(pids=600, memory=512).commands.run("echo on").stdout == "on\n"


def test_a_disk_has_a_rate_that_holds_for_what_is_written_later_too(
    create: Callable[..., Sandbox], server: Any
) -> None:
    slow, usual = create(metadata={"atoll.disk_mib_s": "8"}), create()

    def seconds(sandbox: Sandbox) -> float:
        """Until what its programs wrote is on its disk, as the host sees it."""
        sandbox.commands.run("head -c 32M /dev/urandom > f")
        began = time.monotonic()
        kept.flush(server.data_dir / "sandboxes" / sandbox.sandbox_id / IMAGE)
        return time.monotonic() - began

    assert seconds(slow) > 2.5, "32 MiB at 8 MiB/s"
    assert seconds(usual) < seconds(slow), "its neighbour has no rate"
    rates = Cgroups.probe("unused").blkio
    held = set((rates / "blkio.throttle.write_bps_device").read_text().split("\n")) if rates else set()
    slow.pause()
    slow.connect()
    assert seconds(slow) > 2.5, "after a pause it holds again"
    slow.kill()
    if rates is not None:
        left = set((rates / "blkio.throttle.write_bps_device").read_text().split("\n"))
        assert len(held - left) == 1, "the device's next owner has no rate"
    for wrong in ("0", "-1", "fast", "1e3"):
        with pytest.raises(SandboxException, match="whole number of MiB"):
            create(metadata={"atoll.disk_mib_s": wrong})
