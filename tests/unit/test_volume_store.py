"""The files and devices of volumes: one device for each, bounded by the node, nothing left over."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.isolation.linux.disk import image, volume
from atoll.model.errors import NotFound
from atoll.volumes.store import VolumeRecord, VolumeStore

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VolumeStore]:
    if os.geteuid() != 0 or (reason := image.why_not(tmp_path)):
        pytest.skip(f"no loop devices for root: {reason if os.geteuid() == 0 else 'not root'}")
    made = VolumeStore(tmp_path / "volumes")
    made.open()
    yield made
    for record in made.all():
        made.remove(record.volume_id)


def write(mount: int, name: str, size: int) -> None:
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=mount)
    try:
        view = memoryview(bytes(size))
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_one_device_for_all_who_mount_it_and_its_space_is_watched(store: VolumeStore) -> None:
    one = VolumeRecord(str(uuid.uuid4()), 64, "digest")
    store.create(one)
    store.create(one)  # there already
    first, second = store.attach(one.volume_id), store.attach(one.volume_id)
    assert first.name == second.name
    mounts = [volume.mount(device.name) for device in (first, second)]
    for device in (first, second):
        os.close(device.descriptor)
    write(mounts[0], "a", 8 * MIB)
    assert os.stat("a", dir_fd=mounts[1]).st_size == 8 * MIB
    assert store.uses()[one.volume_id].taken >= 8 * MIB

    store.allow(one.volume_id, 0)  # the host has no more
    with pytest.raises(OSError, match="No space left") as full:
        write(mounts[1], "b", 8 * MIB)
    assert full.value.errno == errno.ENOSPC
    store.allow(one.volume_id, None)
    write(mounts[1], "b", 8 * MIB)

    assert store.remove(one.volume_id)
    assert not store.remove(one.volume_id)
    write(mounts[0], "c", MIB)  # who has it mounted keeps it
    with pytest.raises(NotFound):
        store.attach(one.volume_id)
    for mount in mounts:
        os.close(mount)
    assert list(store.place.iterdir()) == []
    assert store.uses() == {}


def test_its_space_is_looked_at_while_others_come(store: VolumeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the node ended of it: a dictionary had changed while a thread went through it."""

    def meanwhile(_image: Path) -> None:
        store._records[str(uuid.uuid4())] = VolumeRecord("", 16, "")

    monkeypatch.setattr("atoll.volumes.store.loops.identity", meanwhile)
    meanwhile(Path())
    assert store.uses() == {}
    store._records.clear()


def test_what_was_not_finished_is_gone_and_what_cannot_be_read_is_not_touched(store: VolumeStore) -> None:
    one = VolumeRecord(str(uuid.uuid4()), 16, "digest")
    store.create(one)
    (store.place / ".new-x").mkdir()
    (store.place / ".gone-y").mkdir()
    again = VolumeStore(store.place)
    again.open()
    assert again.all() == [one]
    assert [path.name for path in store.place.iterdir()] == [one.volume_id]
    (store.place / one.volume_id / "volume.json").write_text('{"format": 99}')
    with pytest.raises(OSError, match="cannot be read"):
        VolumeStore(store.place).open()
    assert (store.place / one.volume_id / "volume.img").exists()
