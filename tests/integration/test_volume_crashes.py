"""Volumes while processes of the server are killed, and when there is no more room: nothing acknowledged is missing,
nothing is left over, and the host is never the one that is full."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2b import CommandExitException, Sandbox, Volume
from e2b.exceptions import RateLimitException, VolumeException
from sdk_support import eventually

from support.tiers import SERVER_ENVIRON

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20
VOLUME_MIB = 64
WRITER = """
import os, time
with open("/data/log", "a") as log:
    for number in range(1_000_000):
        log.write(f"{number}\\n")
        log.flush()
        os.fsync(log.fileno())
        with open("/tmp/done.new", "w") as done:
            done.write(str(number))
        os.rename("/tmp/done.new", "/tmp/done")
        time.sleep(0.02)
"""


@pytest.fixture
def running(start_server: Callable[..., Any], tier: str) -> Any:
    environ = {**SERVER_ENVIRON[tier], "ATOLL_VOLUME_MIB": str(VOLUME_MIB), "ATOLL_TOTAL_VOLUMES_MIB": "150"}
    return start_server(environ=environ, options=["--isolation", tier])


def _options(running: Any) -> dict[str, Any]:
    return {"api_key": running.api_key, "api_url": running.url, "sandbox_url": running.url}


def _volume(running: Any, volume_id: str, monkeypatch: pytest.MonkeyPatch) -> Volume:
    monkeypatch.setenv("E2B_VOLUME_API_URL", running.url)
    return Volume.connect(volume_id, api_key=running.api_key, api_url=running.url)


def _devices(running: Any) -> list[str]:
    """Loop devices on images of its volumes, those too whose file has no name any more."""
    found = []
    for place in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if f"{running.data_dir}/volumes/" in (text := place.read_text()):
                found.append(text.strip())
    return found


def _servers_of_contents(running: Any) -> list[int]:
    """Those of any server's volumes that were started by this one's node."""
    node = running.pid_of("node")
    children = Path(f"/proc/{node}/task").glob("*/children")
    return [
        int(pid)
        for child in children
        for pid in child.read_text().split()
        if Path(f"/proc/{pid}/comm").read_text() == "atoll-volume\n"
    ]


def _works(volume: Volume) -> bool:
    try:
        volume.write_file("/probe", "x", request_timeout=10)
    except Exception:  # whatever a client sees of a server that is being started again
        return False
    return True


def _numbers(text: str) -> list[int]:
    return [int(line) for line in text.split()]


def test_a_volume_outlives_every_process_of_the_server_and_nothing_is_left_over(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = _options(running)
    made = Volume.create(f"v-{uuid.uuid4().hex[:8]}", api_key=running.api_key, api_url=running.url)
    volume = _volume(running, made.volume_id, monkeypatch)
    sandbox = Sandbox.create(timeout=600, volume_mounts={"/data": volume}, **options)
    sandbox.files.write("/tmp/writer.py", WRITER)
    sandbox.commands.run("python3 /tmp/writer.py", background=True, timeout=0)
    acknowledged = []
    for count, role in enumerate(("volume", "node", "front")):
        volume.write_file(f"/kept-{count}", role)
        acknowledged.append(role)
        pid = _servers_of_contents(running)[0] if role == "volume" else running.pid_of(role)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: _works(volume), what=f"contents are served after {role} was killed", within_s=40)
        assert [volume.read_file(f"/kept-{one}") for one in range(len(acknowledged))] == acknowledged
        assert len(_devices(running)) == 1, "there are never two devices on one volume"

    running.kill()
    running.start()
    options = _options(running)
    volume = _volume(running, made.volume_id, monkeypatch)
    sandbox = Sandbox.connect(sandbox.sandbox_id, **options)
    done = int(sandbox.commands.run("cat /tmp/done").stdout)
    eventually(lambda: int(sandbox.commands.run("cat /tmp/done").stdout) > done, what="the sandbox writes all the time")
    seen = _numbers(volume.read_file("/log"))
    assert seen[: done + 1] == list(range(done + 1)), "no line that was synced is missing"
    assert [volume.read_file(f"/kept-{one}") for one in range(len(acknowledged))] == acknowledged
    assert len(_devices(running)) == 1
    with pytest.raises(VolumeException, match="409"):
        Volume.destroy(volume.volume_id, api_key=running.api_key, api_url=running.url)

    sandbox.kill(**options)
    assert Volume.destroy(volume.volume_id, api_key=running.api_key, api_url=running.url)
    eventually(lambda: _devices(running) == [], what="its device is gone")
    assert _servers_of_contents(running) == []
    assert os.listdir(running.data_dir / "volumes") == []
    assert str(running.data_dir / "volumes") not in Path("/proc/self/mountinfo").read_text()


def test_a_volume_is_bounded_and_so_are_all_together(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = _options(running)
    api = {"api_key": running.api_key, "api_url": running.url}
    first, second = (Volume.create(f"v-{uuid.uuid4().hex[:8]}", **api) for _ in range(2))
    with pytest.raises(RateLimitException, match="all volumes together may have 150 MiB"):
        Volume.create("one-too-many", **api)
    volume = _volume(running, first.volume_id, monkeypatch)
    with Sandbox.create(timeout=300, volume_mounts={"/data": volume}, **options) as sandbox:
        with pytest.raises(CommandExitException) as full:
            sandbox.commands.run("head -c 100M /dev/zero > /data/much")
        assert "No space left" in full.value.stderr
        assert sandbox.commands.run("echo fits > /tmp/other && cat /tmp/other").stdout == "fits\n"
        with pytest.raises(VolumeException, match=r"507: .*no space left in the volume"):
            volume.write_file("/more", bytes(8 * MIB))
        assert not volume.exists("/more")
        image = running.data_dir / "volumes" / first.volume_id / "volume.img"
        assert image.stat().st_blocks * 512 <= (VOLUME_MIB + 1) * MIB
        sandbox.commands.run("rm /data/much")
        volume.write_file("/more", bytes(8 * MIB))
        assert sandbox.commands.run("stat -c %s /data/more").stdout == f"{8 * MIB}\n"
    assert all(Volume.destroy(one.volume_id, **api) for one in (first, second))
    assert [Volume.create("now-it-fits", **api).name] == ["now-it-fits"]
