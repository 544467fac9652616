"""Images between two machines through an object store: a directory, and a local server of S3's protocol."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.images.layers import ImageLayers
from atoll.images.transfer import ImageTransfer
from atoll.model.errors import InvalidRequest, NotOffered, PlatformError, TemplateNotFound
from atoll.objects import Objects, open_objects
from atoll.objects.directory import DirectoryObjects

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="owners and devices are kept: needs root")

FIRST, SECOND = "1" * 40, "2" * 40


class _Machine:
    """A node's templates, with the build `b1` of `base`."""

    def __init__(self, place: Path, objects: Objects | None) -> None:
        self.place = place
        self.images = ImageLayers(place, holder=place)
        self.transfer = ImageTransfer(place, self.images, objects)

    def make_base(self) -> Path:
        layer = self.place / "base/builds/b1"
        (layer / "etc").mkdir(parents=True)
        (layer / "etc/name").write_text("base")
        return layer

    def make(self, image_id: str, below: tuple[Path, ...], text: str) -> tuple[Path, ...]:
        with self.images.capturing(image_id, below, "namespaces") as made:
            layer = made.target / "layer"
            layer.mkdir()
            (layer / "text").write_text(text)
            os.chown(layer / "text", 1000, 1001)
            os.setxattr(layer, "trusted.overlay.opaque", b"y")
            os.mknod(layer / "removed", 0o600 | 0o020000, os.makedev(0, 0))
            with (layer / "holes").open("wb") as sparse:
                sparse.truncate(64 << 20)
            made.layer = layer
        return self.images.find(image_id)


class _Counted(DirectoryObjects):
    """Notes what is put."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.puts: list[str] = []

    def put(self, key: str, source: Path) -> None:
        self.puts.append(key)
        super().put(key, source)


@pytest.fixture
def store(tmp_path: Path) -> _Counted:
    return _Counted(tmp_path / "objects")


def test_an_image_arrives_with_all_that_it_stands_on_as_it_was(store: _Counted, tmp_path: Path) -> None:
    here, there = _Machine(tmp_path / "here", store), _Machine(tmp_path / "there", store)
    layers = here.make(FIRST, (here.make_base(),), "first")
    here.make(SECOND, layers, "second")
    here.transfer.share(SECOND)
    there.transfer.fetch(SECOND)
    found = there.images.find(SECOND)
    assert [one.relative_to(there.place) for one in found] == [
        one.relative_to(here.place) for one in here.images.find(SECOND)
    ]
    assert [(one / "text").read_text() for one in found[:2]] == ["second", "first"]
    assert (found[2] / "etc/name").read_text() == "base"
    text, removed, holes = ((found[0] / name).stat() for name in ("text", "removed", "holes"))
    assert (text.st_uid, text.st_gid) == (1000, 1001)
    assert removed.st_rdev == 0
    assert (holes.st_size, holes.st_blocks < 1000) == (64 << 20, True)
    assert os.getxattr(found[0], "trusted.overlay.opaque") == b"y"
    assert not list((there.place / ".building").iterdir())


def test_what_is_there_already_is_neither_packed_nor_stored_nor_fetched_again(store: _Counted, tmp_path: Path) -> None:
    here, there = _Machine(tmp_path / "here", store), _Machine(tmp_path / "there", store)
    layers = here.make(FIRST, (here.make_base(),), "first")
    here.transfer.share(FIRST)
    there.transfer.fetch(FIRST)
    store.puts.clear()
    here.make(SECOND, layers, "second")
    here.transfer.share(SECOND)
    here.transfer.share(SECOND)
    blobs = [key for key in store.puts if key.startswith("blobs/")]
    assert (len(blobs), len(store.puts)) == (1, 3), "its own layer alone, with its part's note and its record"
    for blob in (tmp_path / "objects/blobs").iterdir():
        if f"blobs/{blob.name}" not in blobs:
            blob.unlink()  # not needed any more
    there.transfer.fetch(SECOND)
    assert (there.images.find(SECOND)[0] / "text").read_text() == "second"
    # Two layers that hold the same are one blob.
    store.puts.clear()
    here.make("3" * 40, here.images.find(FIRST), "second")
    here.transfer.share("3" * 40)
    assert sum(key.startswith("blobs/") for key in store.puts) <= 1


def test_what_is_damaged_missing_or_no_layer_is_refused_and_leaves_nothing(store: _Counted, tmp_path: Path) -> None:
    here, there = _Machine(tmp_path / "here", store), _Machine(tmp_path / "there", store)
    here.make(FIRST, (here.make_base(),), "first")
    here.transfer.share(FIRST)
    record = tmp_path / "objects/images" / f"{FIRST}.json"
    whole = record.read_text()
    found = json.loads(whole)
    own = found["record"]["layers"][0]
    blob = tmp_path / "objects/blobs" / found["parts"][own]
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + b"x")
    with pytest.raises(PlatformError, match="damaged"):
        there.transfer.fetch(FIRST)
    blob.unlink()
    with pytest.raises(PlatformError, match="lacks the blob"):
        there.transfer.fetch(FIRST)
    blob.write_bytes(content)
    record.write_text(whole.replace(own, "../../outside"))
    with pytest.raises(PlatformError, match="no layer's"):
        there.transfer.fetch(FIRST)
    record.write_text("{}")
    with pytest.raises(PlatformError):
        there.transfer.fetch(FIRST)
    assert not there.images.has(FIRST)
    assert not list((there.place / ".building").iterdir())
    record.write_text(whole)
    there.transfer.fetch(FIRST)
    assert there.images.has(FIRST)


def test_an_image_that_nobody_has_and_a_node_without_a_store_say_so(store: _Counted, tmp_path: Path) -> None:
    alone, there = _Machine(tmp_path / "alone", None), _Machine(tmp_path / "there", store)
    with pytest.raises(NotOffered, match="object store"):
        alone.transfer.share(FIRST)
    for machine, name in ((alone, FIRST), (there, FIRST), (there, "../../etc")):
        with pytest.raises(TemplateNotFound):
            machine.transfer.fetch(name)
    with pytest.raises(TemplateNotFound):
        there.transfer.share(FIRST)


@pytest.mark.parametrize("url", ["", "/srv", "file://host/x", "file:relative", "s3://", "http://x/y", "s3:///x"])
def test_what_is_no_object_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="file:///"):
        open_objects(url)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a bucket on a server of this process, which speaks S3's protocol."""
    boto3 = pytest.importorskip("boto3", reason="the client for s3:// is not installed: pip install 'atoll[s3]'")
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    running.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    endpoint = f"http://127.0.0.1:{port}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="atoll")
    yield f"s3://atoll/some/place?endpoint={endpoint}"
    running.stop()


def test_the_same_by_s3s_protocol(s3: str, tmp_path: Path) -> None:
    objects = open_objects(s3)
    here, there = _Machine(tmp_path / "here", objects), _Machine(tmp_path / "there", objects)
    here.make(FIRST, (here.make_base(),), "first")
    with pytest.raises(TemplateNotFound):
        there.transfer.fetch(FIRST)
    here.transfer.share(FIRST)
    there.transfer.fetch(FIRST)
    assert (there.images.find(FIRST)[0] / "text").read_text() == "first"


def test_a_service_that_is_not_there_is_a_failure_and_no_missing_image(
    s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    objects = open_objects(s3.replace("s3://atoll", "s3://another-bucket"))
    machine = _Machine(tmp_path / "here", objects)
    machine.make(FIRST, (machine.make_base(),), "first")
    with pytest.raises(PlatformError, match="object store"):
        machine.transfer.share(FIRST)
