"""A volume is what its sandboxes made of it: the server of its contents is led nowhere, and has nothing to be led to.

The verdict is the host's; the control shows that the same trick works where the wall is not.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox, Volume
from e2b.exceptions import VolumeException, VolumePathNotFoundException

from support.tiers import one_tier

pytestmark = pytest.mark.timeout(180)

SECRET = "of the host"


@pytest.fixture
def create(server: Any) -> Iterator[Callable[..., Sandbox]]:
    """`Sandbox.create` that kills what it made when the test ends."""
    made: list[Sandbox] = []

    def _create(**kwargs: Any) -> Sandbox:
        made.append(Sandbox.create(**kwargs))
        return made[-1]

    yield _create
    for sandbox in made:
        sandbox.kill()


@pytest.fixture
def volume(server: Any, create: Callable[..., Sandbox]) -> Iterator[Volume]:
    made = Volume.create(f"hostile-{uuid.uuid4().hex[:8]}")
    yield made
    for sandbox in Sandbox.list().next_items():
        if sandbox.volume_mounts:
            Sandbox.kill(sandbox.sandbox_id)
    Volume.destroy(made.volume_id)


def server_of(volume: Volume) -> int:
    """The process that serves its contents; the volume's top names the volume in `.of`."""
    volume.write_file("/.of", volume.volume_id)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if (
                Path(f"/proc/{pid}/comm").read_text() == "atoll-volume\n"
                and Path(f"/proc/{pid}/root/.of").read_text() == volume.volume_id
            ):
                return int(pid)
        except OSError:
            continue
    raise AssertionError("no process serves the volume")


def test_what_a_sandbox_puts_into_a_volume_leads_nowhere(
    volume: Volume, create: Callable[..., Sandbox], tmp_path: Path, tier: str
) -> None:
    marker = tmp_path / "marker"
    marker.write_text(SECRET)
    sandbox = create(volume_mounts={"/data": volume})
    depth = "/.." * 12
    sandbox.commands.run(
        f"cd /data && ln -s {marker} direct && ln -s {depth[1:]}{marker} dots && "
        "ln -s / root && ln -s /proc outside && "
        f"mkdir dir && ln -s ../../../../../../.. dir/up && truncate -s 1T sparse && "
        "python3 -c \"import os; os.mkdir(b'\\xff')\" 2>/dev/null; sudo cp /usr/bin/id suid; sudo chown root suid; "
        "sudo chmod 4755 suid; mkfifo pipe || true"
    )
    place = Path(f"/proc/{server_of(volume)}/root")
    assert os.readlink(place / "direct") == str(marker)
    assert Path(os.readlink(place / "direct")).read_text() == SECRET, "control: followed by the host it is the host's"
    for path in ("/direct", "/dots", f"/root{marker}", "/outside/1/environ", "/outside/self/root", f"/dir/up{marker}"):
        with pytest.raises(VolumePathNotFoundException):
            volume.read_file(path)
    for path in ("/root/../etc/passwd", f"/dir/up{marker}"):
        with pytest.raises((VolumeException, VolumePathNotFoundException)):
            volume.update_metadata(path, mode=0o777)
    volume.write_file(f"/dir/up{marker}", "mine", force=True)
    assert marker.read_text() == SECRET
    assert volume.read_file(str(marker)) == "mine", "within the volume, where its root is"
    volume.write_file("/direct", "replaced")
    assert (marker.read_text(), volume.read_file("/direct")) == (SECRET, "replaced")
    if volume.exists("/pipe"):  # gVisor makes none in a volume
        with pytest.raises(VolumeException, match=r"400: .*no regular file"):
            volume.read_file("/pipe", request_timeout=20)
    assert volume.exists("/pipe") == (tier == "namespaces")
    volume.remove("/root")
    volume.remove("/dir")
    assert marker.exists()
    assert volume.get_info("/sparse").size == 1 << 40
    assert volume.list("/")
    assert sandbox.commands.run("/data/suid -u").stdout == "1000\n"


@one_tier("the server of a volume's contents knows no tier")
def test_the_server_of_a_volume_has_nothing_else(volume: Volume) -> None:
    pid = server_of(volume)
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert os.listdir(f"/proc/{pid}/root") == [".of"], "its root directory is the volume"
    assert "etc" in os.listdir(f"/proc/{os.getpid()}/root"), "control"
    assert {int(one) >= 524288 for one in status["Uid"].split() + status["Gid"].split()} == {True}
    chown, dac_override, fowner, fsetid = (1 << number for number in (0, 1, 3, 4))
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[kind], 16) == chown | dac_override | fowner | fsetid
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for kind in ("user", "mnt", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    targets = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
    allowed = ("socket:", "anon_inode:", "/null", "/")
    assert [one for one in targets if not one.startswith(allowed[:2]) and one not in allowed[2:]] == []
