"""The machine goes down: there is what had reached its disk by then, and nothing else. What was answered stays.

The server's disk is a file system in a file (a loop device). A power cut is a copy of that file while the kernel still
holds in memory what nobody has synced: no process of the server gets to write anything after it. What comes up then
stands on the copy.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from e2b import Sandbox, Volume
from sdk_support import eventually

from atoll.testing import footprint
from support.host import skip_without
from support.server import ServerProcess
from support.tiers import SERVER_ENVIRON

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root, loop devices"),
    pytest.mark.timeout(300),
]
MIB = 2048


@dataclass
class Machine:
    """Its disk is mounted at `place`; the base template there is this machine's own, by a bind mount."""

    tier: str
    place: Path
    image: Path
    base: Path
    server: ServerProcess | None = None
    mark: str = ""

    def boot(self) -> ServerProcess:
        """Mounts what the disk holds and starts a server."""
        # Nothing is written because time has passed: only what is synced counts.
        subprocess.run(["mount", "-o", "loop,commit=300", self.image, self.place], check=True)
        templates = self.place / "templates"
        (templates / "base").mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", self.base, templates / "base"], check=True)
        self.mark = footprint.new_mark()
        self.server = ServerProcess.start(
            self.place / "data",
            templates_dir=templates,
            options=["--isolation", self.tier, "--end-sandboxes"],
            environ={footprint.MARKER: self.mark, "ATOLL_DISK_RESERVE_MIB": "16", **SERVER_ENVIRON[self.tier]},
        )
        return self.server

    def cut(self) -> None:
        """Everything ends, and of the disk is left what had reached it."""
        rest = self.image.with_suffix(".rest")
        subprocess.run(["cp", "--sparse=always", self.image, rest], check=True)
        self.end()
        rest.rename(self.image)

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Ends all processes and unmounts."""
        if self.server is not None:
            self.server.stop(how)
            self.server = None

        def gone() -> bool:
            # A sandbox of gVisor, whose server is gone, is known by what it has open alone.
            there = {*footprint.processes_of(self.mark), *_users(self.place)}
            for pid in there:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not there

        eventually(gone, what="every process has ended")
        for point in (self.place / "templates" / "base", self.place):
            if os.path.ismount(point):
                eventually(lambda p=point: _unmounted(p), what=f"{point.name} is unmounted")


def _users(place: Path) -> set[int]:
    """The processes that have a file there open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link).startswith(f"{place}/"):
                found.add(int(link.parts[2]))
    return found


def _unmounted(point: Path) -> bool:
    return subprocess.run(["umount", point], check=False, capture_output=True).returncode == 0


def _make(image: Path, mib: int) -> None:
    with image.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)


@contextmanager
def _machine(tier: str, templates_dir: Path, scratch: Path) -> Iterator[Machine]:
    image, place = scratch / "disk.img", scratch / "disk"
    place.mkdir()
    _make(image, MIB)
    machine = Machine(tier, place, image, templates_dir / "base")
    try:
        yield machine
    finally:
        machine.end(signal.SIGTERM)
        image.unlink()


@pytest.fixture(params=["namespaces", "gvisor"])
def machine(request: pytest.FixtureRequest, templates_dir: Path, tmp_path: Path) -> Iterator[Machine]:
    skip_without(request.param)
    with _machine(request.param, templates_dir, tmp_path) as made:
        yield made


def test_what_was_answered_outlives_a_power_cut(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def boot() -> tuple[str, dict[str, str]]:
        server = machine.boot()
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        return server.url, {"X-API-Key": server.api_key}

    url, key = boot()
    volume = Volume.create("kept")
    volume.write_file("/in-volume", "in the volume")
    paused = Sandbox.create("base", timeout=300)
    paused.files.write("paused", "in the paused one")
    source = Sandbox.create("base", timeout=300)
    source.files.write("copied", "in the snapshot")
    snapshot = source.create_snapshot(name="first", mode="filesystem")
    Sandbox.pause(paused.sandbox_id, mode="filesystem")
    hook = {"name": "hook", "url": "https://example.com/", "enabled": True, "events": ["sandbox.lifecycle.created"]}
    made = httpx.post(f"{url}/events/webhooks", json={**hook, "signatureSecret": "s" * 32}, headers=key)
    assert made.status_code == 201, made.text

    machine.cut()
    url, same_key = boot()

    assert same_key == key
    assert [one["id"] for one in httpx.get(f"{url}/events/webhooks", headers=key).json()] == [made.json()["id"]]
    back = Sandbox.connect(paused.sandbox_id, timeout=300, on_resume="reboot")
    assert back.files.read("paused") == "in the paused one"
    child = Sandbox.create(snapshot.snapshot_id, timeout=300)
    assert child.files.read("copied") == "in the snapshot"
    assert Volume.connect(volume.volume_id).read_file("/in-volume") == "in the volume"
    for one in (back, child):
        one.kill()


def test_what_nobody_has_synced_is_lost_in_such_a_cut(tmp_path: Path) -> None:
    """The control: without it the test above would pass whatever is synced."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    _make(image, 64)
    subprocess.run(["mount", "-o", "loop,commit=300", image, place], check=True)
    try:
        (place / "lost").write_text("x")
        with (place / "kept").open("w") as file:
            file.write("x")
            file.flush()
            os.fsync(file.fileno())
        (place / "late").write_text("x")
        shutil.copyfile(image, tmp_path / "rest.img")
    finally:
        eventually(lambda: _unmounted(place), what="it is unmounted")
    subprocess.run(["mount", "-o", "loop", tmp_path / "rest.img", place], check=True)
    try:
        assert (place / "kept").read_text() == "x"
        assert not (place / "late").exists()
    finally:
        eventually(lambda: _unmounted(place), what="it is unmounted")
