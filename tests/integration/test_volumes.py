"""Volumes by the published SDKs: their contents, and sandboxes that share them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from e2b import AsyncVolume, Sandbox, Volume
from e2b.exceptions import (
    AuthenticationException,
    SandboxException,
    VolumeException,
    VolumeNotFoundException,
    VolumePathNotFoundException,
)
from sdk_support import eventually

from support.tiers import one_tier

pytestmark = pytest.mark.timeout(180)

ONE_TIER = one_tier("contents are served by the node, whatever the tier of the sandboxes that have them mounted")


def new_name() -> str:
    """One that no other test has."""
    return f"v-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def volume(server: Any) -> Iterator[Volume]:
    """An empty one, destroyed when the test ends."""
    made = Volume.create(new_name())
    yield made
    Volume.destroy(made.volume_id)


# Volumes of a team


@ONE_TIER
def test_a_volume_is_made_found_listed_and_destroyed(server: Any) -> None:
    name = new_name()
    volume = Volume.create(name)
    assert str(uuid.UUID(volume.volume_id)) == volume.volume_id
    assert volume.name == name
    with pytest.raises(VolumeException, match=r"409: .* exists already"):
        Volume.create(name)
    info = Volume.get_info(volume.volume_id)
    assert (info.name, info.token) == (name, volume.token)
    other = Volume.connect(volume.volume_id)
    other.write_file("/note", "kept")
    assert volume.read_file("/note") == "kept"
    assert [one.name for one in Volume.list() if one.volume_id == volume.volume_id] == [name]

    assert Volume.destroy(volume.volume_id)
    assert not Volume.destroy(volume.volume_id)
    assert volume.volume_id not in {one.volume_id for one in Volume.list()}
    with pytest.raises(VolumePathNotFoundException):
        volume.read_file("/note")
    for unknown in (volume.volume_id, "no-uuid"):
        with pytest.raises(VolumeNotFoundException):
            Volume.connect(unknown)
    assert not Volume.destroy("no-uuid")
    again = Volume.create(name)
    assert again.list("/") == [], "nothing of an earlier one of that name"
    assert Volume.destroy(again.volume_id)


@ONE_TIER
@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "é", "x" * 129, "a\n"])
def test_a_name_is_checked(server: Any, name: str) -> None:
    with pytest.raises(VolumeException, match="400: Invalid volume name"):
        Volume.create(name)


@ONE_TIER
def test_a_volume_is_of_its_team_alone(volume: Volume, server: Any) -> None:
    volume.write_file("/secret", "of the first team")
    made = subprocess.run(
        [sys.executable, "-m", "atoll.cli.main", "team", "create", new_name(), "--json"],
        env={**os.environ, "ATOLL_DATA_DIR": str(server.data_dir)},
        capture_output=True,
        check=True,
    )
    key = json.loads(made.stdout)["api_key"]
    assert Volume.list(api_key=key) == []
    with pytest.raises(VolumeNotFoundException):
        Volume.connect(volume.volume_id, api_key=key)
    assert not Volume.destroy(volume.volume_id, api_key=key)
    with pytest.raises(SandboxException, match=f"400: volumeMounts: volume '{volume.name}' not found"):
        Sandbox.create(volume_mounts={"/data": volume.name}, api_key=key)
    same = Volume.create(volume.name, api_key=key)
    assert same.volume_id != volume.volume_id, "a name is a team's own"
    for token in (same.token, key):
        with pytest.raises(AuthenticationException):
            volume.read_file("/secret", token=token)
    assert Volume.destroy(same.volume_id, api_key=key)
    assert volume.read_file("/secret") == "of the first team"


# Contents


@ONE_TIER
def test_contents_are_written_read_listed_changed_and_removed(volume: Volume) -> None:
    made = volume.make_dir("/docs", mode=0o750, uid=7, gid=8)
    assert (made.name, made.path, made.type.value, made.mode, made.uid, made.gid) == (
        "docs", "/docs", "directory", 0o750, 7, 8,
    )  # fmt: skip
    with pytest.raises(VolumeException, match="409"):
        volume.make_dir("/docs")
    with pytest.raises(VolumePathNotFoundException):
        volume.make_dir("/a/b/c")
    assert volume.make_dir("/a/b/c", force=True).path == "/a/b/c"
    assert volume.make_dir("/a/b", force=True).path == "/a/b"
    with pytest.raises(VolumePathNotFoundException):
        volume.write_file("/x/y", "z")
    assert volume.write_file("/x/y", "z", force=True).size == 1

    written = volume.write_file("docs/text", "grüße", uid=1, gid=2, mode=0o600)
    assert (written.path, written.size, written.mode, written.uid, written.gid) == ("/docs/text", 7, 0o600, 1, 2)
    assert volume.write_file("/docs/text", "new").mode == 0o600, "an owner and a mode stay when a file is overwritten"
    assert volume.read_file("/docs/text") == "new"
    assert volume.read_file("//docs/./x/../text", format="bytes") == b"new"
    new = volume.write_file("/docs/bytes", b"\x00\xff")
    assert (new.uid, new.gid, new.mode) == (1000, 1000, 0o644)
    assert volume.read_file("/docs/bytes", format="bytes") == b"\x00\xff"
    volume.write_file("/docs/io", io.BytesIO(b"0123456789" * 100_000))
    assert sum(map(len, volume.read_file("/docs/io", format="stream"))) == 1_000_000
    volume.write_file("/empty", "")
    assert volume.read_file("/empty") == ""
    assert volume.exists("/docs")
    assert not volume.exists("/docs/none")
    assert volume.get_info("/").path == "/"
    with pytest.raises(VolumePathNotFoundException):
        volume.get_info("/docs/text/below")
    with pytest.raises(VolumePathNotFoundException):
        volume.read_file("/none")
    for wrong in ("/docs", "/"):
        with pytest.raises(VolumeException, match=r"400: .*is a directory"):
            volume.read_file(wrong)
        with pytest.raises(VolumeException, match=r"400: .*is a directory"):
            volume.write_file(wrong, "")

    assert [one.path for one in volume.list("/")] == ["/a", "/docs", "/empty", "/x"]
    assert {one.path for one in volume.list("/", depth=3)} == {
        "/a", "/a/b", "/a/b/c", "/docs", "/docs/bytes", "/docs/io", "/docs/text", "/empty", "/x", "/x/y",
    }  # fmt: skip
    assert volume.list("/a/b/c") == []
    with pytest.raises(VolumePathNotFoundException):
        volume.list("/none")
    with pytest.raises(VolumeException, match="400"):
        volume.list("/docs/text")
    with pytest.raises(VolumeException, match="400"):
        volume.list("/", depth=0)

    changed = volume.update_metadata("/docs/text", uid=1000, gid=1001, mode=0o6755)
    assert (changed.uid, changed.gid, changed.mode) == (1000, 1001, 0o6755)
    assert volume.update_metadata("/docs", mode=0o700).uid == 7
    with pytest.raises(VolumePathNotFoundException):
        volume.update_metadata("/none", mode=0o700)
    with pytest.raises(VolumeException, match="400"):
        volume.update_metadata("/docs", uid=70000)
    volume.remove("/docs/text")
    volume.remove("/a")
    assert [one.path for one in volume.list("/")] == ["/docs", "/empty", "/x"]
    with pytest.raises(VolumePathNotFoundException):
        volume.remove("/a")
    with pytest.raises(VolumeException, match="400"):
        volume.remove("/")


@ONE_TIER
async def test_contents_by_the_asynchronous_client(server: Any) -> None:
    volume = await AsyncVolume.create(new_name())
    other = await AsyncVolume.connect(volume.volume_id)
    assert (await AsyncVolume.get_info(volume.volume_id)).token == other.token
    assert volume.volume_id in {one.volume_id for one in await AsyncVolume.list()}
    assert (await volume.make_dir("/d")).path == "/d"
    assert (await volume.write_file("/d/f", "text")).size == 4
    assert await other.read_file("/d/f") == "text"
    chunks = [chunk async for chunk in await volume.read_file("/d/f", format="stream")]
    assert b"".join(chunks) == b"text"
    assert await volume.exists("/d/f")
    assert (await volume.get_info("/d/f")).name == "f"
    assert (await volume.update_metadata("/d/f", mode=0o600)).mode == 0o600
    assert [one.path for one in await volume.list("/", depth=2)] == ["/d", "/d/f"]
    await volume.remove("/d")
    assert not await volume.exists("/d/f")
    assert await AsyncVolume.destroy(volume.volume_id)


@ONE_TIER
def test_the_token_is_the_permission_and_statuses_are_http(volume: Volume, server: Any) -> None:
    """What the SDKs do not show: ranges, kinds of errors, and bodies that break off."""
    path = f"{server.url}/volumecontent/{volume.volume_id}"
    volume.write_file("/ten", "0123456789")
    with pytest.raises(AuthenticationException):
        volume.read_file("/ten", token="wrong")
    bearer = {"Authorization": f"Bearer {volume.token}"}
    for headers in ({}, {"X-API-Key": server.api_key}, {"Authorization": f"Bearer {server.api_key}"}):
        answer = httpx.get(f"{path}/file", params={"path": "/ten"}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    with httpx.Client(headers=bearer) as client:
        part = client.get(f"{path}/file", params={"path": "/ten"}, headers={"Range": "bytes=2-4"})
        assert (part.status_code, part.text, part.headers["content-range"]) == (206, "234", "bytes 2-4/10")
        assert client.get(f"{path}/file", params={"path": "/ten"}, headers={"Range": "bytes=20-"}).status_code == 416
        assert client.get(f"{path}/file").status_code == 400
        assert client.get(f"{path}/file", params={"path": "a\0b"}).status_code == 400
        assert client.get(f"{path}/file", params={"path": "x/" * 3000}).status_code == 400
        assert client.get(f"{path}/nothing", params={"path": "/"}).status_code == 404
        assert client.put(f"{path}/path", params={"path": "/"}).status_code == 405
        assert client.patch(f"{path}/path", params={"path": "/ten"}, json={"mode": "0600"}).status_code == 400
        assert client.patch(f"{path}/path", params={"path": "/ten"}, content=b"[" * 9999).status_code == 400
        missing = client.get(f"{server.url}/volumecontent/{uuid.uuid4()}/path", params={"path": "/"})
        assert (missing.status_code, missing.json()["code"]) == (404, "not_found")

        def broken() -> Iterator[bytes]:
            yield b"half"
            raise RuntimeError("the client breaks off")

        with pytest.raises(RuntimeError, match="breaks off"):
            client.put(f"{path}/file", params={"path": "/half"}, content=broken())
    eventually(
        lambda: [one.path for one in volume.list("/")] == ["/ten"], what="a file that did not come whole is not there"
    )


# Mounted


def test_a_volume_is_shared_and_outlives_its_sandboxes(
    volume: Volume, create: Callable[..., Sandbox], tier: str
) -> None:
    volume.write_file("/docs/text", "by the interface", force=True)
    one = create(volume_mounts={"/data": volume}, timeout=600)
    two = create(volume_mounts={"/mnt/deep/below": volume.name})
    assert one.get_info().volume_mounts == [{"name": volume.name, "path": "/data"}]
    first = "cat /data/docs/text; echo one > /data/new; mkdir /data/mine; stat -c %u:%g /data/new /data/mine"
    assert one.commands.run(first).stdout == "by the interface1000:1000\n1000:1000\n"
    second = "cat /mnt/deep/below/new; echo two >> /mnt/deep/below/new; touch /mnt/deep/below/mine/its"
    assert two.commands.run(second).stdout == "one\n"
    assert one.commands.run("cat /data/new; ls /data/mine").stdout == "one\ntwo\nits\n"
    assert volume.read_file("/new") == "one\ntwo\n"
    # A set-uid program is any other, and a device of the machine is none.
    suid = "sudo cp /usr/bin/id /data/id && sudo chmod 6755 /data/id && /data/id -u; "
    assert one.commands.run(f"{suid} sudo mknod /data/sda b 8 0 2>&1 || sudo head -c1 /data/sda 2>&1 || echo no").stdout
    assert one.commands.run("/data/id -u").stdout == "1000\n"
    size = one.commands.run("df --output=size -m /data | tail -1").stdout
    assert 9_000 < int(size) <= 10_240, "as large as a volume is, not as the machine's disk"
    with pytest.raises(VolumeException, match=r"409: .* is mounted in sandbox"):
        Volume.destroy(volume.volume_id)

    for pause in ({}, {"keep_memory": False}):
        one.pause(**pause)
        two.commands.run("echo paused >> /mnt/deep/below/new")
        with pytest.raises(VolumeException, match="409"):
            Volume.destroy(volume.volume_id)
        one.connect(timeout=600)
        assert one.commands.run("tail -1 /data/new && echo back > /data/new").stdout == "paused\n"
    (fork,) = one.fork(count=1)
    child = getattr(fork, "sandbox", fork)
    assert child.commands.run("cat /data/new && echo child > /data/new").stdout == "back\n"
    child.kill()
    assert two.commands.run("cat /mnt/deep/below/new").stdout == "child\n"
    with pytest.raises(SandboxException, match="no snapshot with memory"):
        two.create_snapshot(mode="full")
    snapshot = two.create_snapshot()
    bare = create(snapshot.snapshot_id)
    assert bare.commands.run("ls -A /mnt/deep/below 2>/dev/null || true").stdout == "", "no snapshot holds a volume"
    Sandbox.delete_snapshot(snapshot.snapshot_id)

    one.kill()
    two.kill()
    assert volume.read_file("/new") == "child\n"


@ONE_TIER
def test_mounts_are_checked(volume: Volume, create: Callable[..., Sandbox]) -> None:
    for path in ("/", "/proc", "/proc/x", "/dev/shm", "/sys", "/etc", "/tmp", "relative", "/a/../etc", "/a\n", ""):
        with pytest.raises(SandboxException, match="400: volumeMounts"):
            create(volume_mounts={path: volume})
    with pytest.raises(SandboxException, match=r"400: .*not found"):
        create(volume_mounts={"/data": "nobody-made-this"})
    other = Volume.create(new_name())
    try:
        with pytest.raises(SandboxException, match="lies within"):
            create(volume_mounts={"/data": volume, "/data/x": other})
        with pytest.raises(SandboxException, match="same path"):
            create(volume_mounts={"/data": volume, "/data/": other})
        both = create(volume_mounts={"/one": volume, "/two": other})
        both.commands.run("echo 1 > /one/f; echo 2 > /two/f")
        assert (volume.read_file("/f"), other.read_file("/f")) == ("1\n", "2\n")
        both.kill()
    finally:
        Volume.destroy(other.volume_id)
