"""The programs that fetch and unpack images inside a sandbox, run here on images that lie, break and burst."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from atoll.control.templates.image import reference
from atoll.control.templates.image.answers import MAX_ANSWER, ImportRefused, answer_of, fetched, user_of
from atoll.control.templates.image.inside import fetch, unpack
from atoll.control.templates.image.inside.tree import LayerError, Tree
from atoll.images.marks import apply_marks
from support.host import requires
from support.images import digest, layer, member, write_layout
from support.lying_registry import lying_registry

LIMITS = {"bytes": 1 << 24, "entries": 1000}


def unpacked(tmp_path: Path, *archives: bytes, limits: dict[str, int] | None = None, diff_id: str = "") -> Tree:
    """The layers of these archives."""
    tree = Tree([])
    unpacking = unpack.Unpacking(tree, limits or LIMITS)
    for number, data in enumerate(archives):
        archive = tmp_path / f"archive-{number}"
        archive.write_bytes(data)
        content = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        wanted = diff_id or digest(content).removeprefix("sha256:")
        unpacking.layer(archive, wanted, tmp_path / str(number))
    return tree


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory that no archive may reach."""
    made = tmp_path / "outside"
    made.mkdir()
    (made / "secret").write_text("secret")
    return made


def test_a_path_never_leads_out_of_the_image(tmp_path: Path, outside: Path) -> None:
    for number, bad in enumerate(("../outside/new", "a/../../outside/new", "a/" * 300 + "x", "a/" + "n" * 256)):
        place = tmp_path / f"bad-{number}"
        place.mkdir()
        with pytest.raises(LayerError, match="path"):
            unpacked(place, layer(member(bad, "x")))
    through = layer(
        member("link", link=str(outside)),
        member("link/new", "new"),
        member("up", link="../../../../../outside"),
        member("up/new", "new"),
        member("loop", link="loop"),
        member("deep/er", link="/link"),
        member("deep/er/too", "too"),
        member("/absolute", "inside"),
        member("./dot", "inside"),
    )
    tree = unpacked(tmp_path, through)
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert tree.read(f"{outside}/new") == "new"
    assert tree.read("outside/new") == "new"
    assert tree.read("absolute") == tree.read("dot") == "inside"
    assert tree.read("link/../secret") == ""
    with pytest.raises(LayerError, match="too many links"):
        tree.read("loop/x")


def test_links_to_what_is_not_in_the_image_are_refused(tmp_path: Path, outside: Path) -> None:
    for number, bad in enumerate(("../outside/secret", "nowhere", "dir", "link/secret")):
        place = tmp_path / f"bad-{number}"
        place.mkdir()
        entries = [member("dir/"), member("link", link=str(outside)), member("hard", hard=bad)]
        with pytest.raises(LayerError, match="link"):
            unpacked(place, layer(*entries))
    tree = unpacked(tmp_path, layer(member("a", "x")), layer(member("sub/b", hard="a")))
    assert tree.read("sub/b") == "x"
    assert (tmp_path / "1" / "sub" / "b").stat().st_nlink == 1, "a link to a lower layer is a copy"


def test_devices_are_left_out_and_marks_are_kept_for_the_host(tmp_path: Path) -> None:
    below = layer(member("a/x", "x"), member("a/y", "y"), member("b/x", "x"), member("c", "c"), member("d/x", "x"))
    above = layer(
        member("disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0),
        member("a/.wh.x"),
        member("b/.wh..wh..opq"),
        member("b/new", "new"),
        member(".wh.c"),
        member("c/", ""),
        member("c/inside", "inside"),
        member(".wh.d"),
        member(".wh..wh.plnk"),
        member(".wh...", ""),
        member("pipe", type=tarfile.FIFOTYPE),
    )
    tree = unpacked(tmp_path, below, above)
    top = tmp_path / "1"
    assert not (top / "disk").exists()
    assert [tree.exists(path) for path in ("a/x", "a/y", "b/x", "b/new", "c/inside", "d/x", "d")] == [
        False, True, False, True, True, False, False,
    ]  # fmt: skip
    if os.geteuid() != 0:
        pytest.skip("marks of overlayfs need root")
    apply_marks(top)
    assert not list(top.rglob(".wh.*"))
    assert (top / "a/x").stat().st_rdev == (top / "d").stat().st_rdev == 0
    assert (top / "a/x").is_char_device()
    assert (top / "d").is_char_device()
    assert os.getxattr(top / "b", "trusted.overlay.opaque") == b"y"


def test_bombs_end_at_the_limits(tmp_path: Path) -> None:
    zeros = io.BytesIO()
    with tarfile.open(fileobj=zeros, mode="w") as archive:
        big = tarfile.TarInfo("zeros")
        big.size = 1 << 25
        archive.addfile(big, io.BytesIO(bytes(1 << 25)))
    with pytest.raises(LayerError, match="larger than 16 MiB"):
        unpacked(tmp_path, gzip.compress(zeros.getvalue()))
    place = tmp_path / "many"
    place.mkdir()
    with pytest.raises(LayerError, match="more than 1000 files"):
        unpacked(place, layer(*(member(f"f{number}") for number in range(1001))))


SPOILED = {
    "cut": lambda data: data[:-900],
    "noise": lambda _: b"no archive" * 100,
    "gzip": lambda data: b"\x1f\x8b" + data,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_broken_archives_and_wrong_digests_are_refused(tmp_path: Path, spoil: Any) -> None:
    good = layer(member("a", "x" * 2000))
    archive = tmp_path / "archive"
    archive.write_bytes(spoil(good))
    with pytest.raises(LayerError, match=r"broken|digest"):
        unpack.Unpacking(Tree([]), LIMITS).layer(archive, digest(good)[7:], tmp_path / "0")
    place = tmp_path / "digest"
    place.mkdir()
    with pytest.raises(LayerError, match="digest"):
        unpacked(place, good, diff_id="0" * 64)


def order(tmp_path: Path, source: str, **more: Any) -> dict[str, Any]:
    return {"source": source, "into": str(tmp_path / "into"), "max_bytes": 1 << 24, "stall_s": 20, **more}


@requires("program:skopeo")
def test_a_layout_is_described_with_all_its_layers(tmp_path: Path) -> None:
    content = layer(member("a", "x"))
    layout = write_layout(tmp_path / "layout", [content], {"Env": ["A=b", "odd"], "User": "7:8", "Cmd": ["run"]})
    answer = {"image": fetch.fetch(order(tmp_path, f"oci:{layout}"))}
    image = fetched(answer_of(b"noise\n" + json.dumps(answer).encode()))
    assert (image.env, image.user, image.command) == ({"A": "b"}, "7:8", ("run",))
    assert image.diff_ids == (digest(content)[7:],)
    foreign = write_layout(tmp_path / "foreign", [content], architectures=["s390x"])
    with pytest.raises(fetch.ImageError, match="s390x"):
        fetch.fetch(order(tmp_path / "other", f"oci:{foreign}"))


@requires("program:skopeo")
def test_a_registry_that_sends_for_ever_or_nothing_is_given_up(tmp_path: Path) -> None:
    with lying_registry("127.0.0.1") as liar:
        more = {"registry": liar.address, "insecure": True}
        for name, says in (("endless", "larger than 1 MiB"), ("slow", "next to nothing for 1 s")):
            limits = {"max_bytes": 1 << 20, "stall_s": 1}
            wanted = order(tmp_path / name, f"docker://{liar.address}/{name}:v1", **more, **limits)
            with pytest.raises(fetch.ImageError, match=says):
                fetch.fetch(wanted)
    with pytest.raises(fetch.ImageError) as failed:
        fetch.fetch(order(tmp_path / "gone", f"docker://{liar.address}/honest:v1", **more))
    assert failed.value.kind == "unreachable"
    assert not list(tmp_path.rglob("auth.json"))


def test_credentials_are_what_each_registry_wants() -> None:
    given = {"registry": "r:1", "credentials": {"type": "registry", "username": "u", "password": "p"}}
    assert fetch._auths(given) == {"r:1": {"auth": "dTpw"}}
    google = {"registry": "r:1", "credentials": {"type": "gcp", "serviceAccountJson": "{}"}}
    assert fetch._auths(google) == {"r:1": {"auth": "X2pzb25fa2V5Ont9"}}
    headers = fetch.signed("AKID", "secret", "us-east-1", "api.ecr.us-east-1.amazonaws.com", time.gmtime(0))
    assert headers["x-amz-date"] == "19700101T000000Z"
    assert (
        "Credential=AKID/19700101/us-east-1/ecr/aws4_request, SignedHeaders=content-type;host;"
        in headers["authorization"]
    )


def test_what_a_program_answers_is_not_believed() -> None:
    good = {"digest": "0" * 64, "blobs": [], "diff_ids": [], "env": [], "workdir": "", "user": "", "command": []}
    assert fetched({"image": good}).digest == "0" * 64
    for spoiled in (
        {"digest": "../x"}, {"blobs": ["1" * 64]}, {"blobs": ["../../etc"], "diff_ids": ["1" * 64]}, {"env": 7},
        {"blobs": ["1" * 64] * 300, "diff_ids": ["1" * 64] * 300}, {"env": ["A=" + "x" * 40000]}, {"command": None},
    ):  # fmt: skip
        with pytest.raises(ImportRefused):
            fetched({"image": {**good, **spoiled}})
    for output in (b"", b"[]", b"{", b"[" * 100_000, b'{"error": 7}', b'{"error": {"kind": "x"}}', b"x" * MAX_ANSWER):
        with pytest.raises(ImportRefused) as refused:
            answer_of(output)
        assert refused.value.kind == "bad"
    for user in (None, 7, "", "a b", "root\n", "x" * 100):
        with pytest.raises(ImportRefused):
            user_of({"user": user})


def test_images_are_named_as_docker_names_them() -> None:
    def source(text: str) -> str:
        found = reference.parse(text)
        return found.source if found is not None else ""

    assert source("python:3") == "docker://docker.io/library/python:3"
    assert source("oven/bun") == "docker://docker.io/oven/bun:latest"
    assert source("localhost/a/b:c") == "docker://localhost/a/b:c"
    assert source("10.0.0.5:5000/a@sha256:" + "0" * 64) == "docker://10.0.0.5:5000/a@sha256:" + "0" * 64
    assert source("ghcr.io/o/r:v@sha256:" + "0" * 64) == "docker://ghcr.io/o/r@sha256:" + "0" * 64
    for wrong in ("", "UPPER", "a b", "-x", "--authfile=x", "a:b:c", "a//b", "../x", "dir:/etc", "x" * 600):
        assert source(wrong) == "", wrong
    python = reference.parse("docker.io/library/python:3.12")
    assert python is not None
    assert reference.stand_in(python) == "base"
    base = reference.parse("e2bdev/base")
    assert base is not None
    assert reference.built_in(base) == "base"
    other = reference.parse("example.org/python")
    assert other is not None
    assert reference.stand_in(other) == reference.built_in(other) == ""
    assert reference.uploaded(f"upload:{'a' * 64}") == "a" * 64
    assert reference.uploaded("upload:../x") == reference.uploaded("a" * 64) == ""
