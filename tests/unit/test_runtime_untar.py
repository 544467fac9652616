"""The archive that a sandbox sends is read strictly: what it declares costs the host nothing that it did not send."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.runtime.files.tree import TooMuch, zip_of_tar
from atoll.runtime.files.untar import BLOCK, MAX_EXTENDED, BadArchive, Kind, members
from support.effort import assert_linear, peak_bytes

END = bytes(2 * BLOCK)


def member(name: str = "f", kind: bytes = b"0", data: bytes = b"", **more: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % BLOCK)


def pax(**records: str) -> bytes:
    text = "".join(_record(key.replace("__", "."), value) for key, value in records.items())
    return member("x", b"x", text.encode())


def _record(key: str, value: str) -> str:
    rest = f" {key}={value}\n"
    length = len(rest) + len(str(len(rest) + 1))
    return f"{length}{rest}"


def zipped(pieces: Iterable[bytes], directory: Path, **more: int) -> dict[str, bytes]:
    made = zip_of_tar(iter(pieces), **more)
    try:
        with zipfile.ZipFile(made) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    finally:
        made.unlink()


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_what_gnu_tar_writes_is_read(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    long = tree / ("d" * 120) / ("é" * 90)
    long.mkdir(parents=True)
    (long / "file").write_bytes(b"x" * 70_000)
    (tree / "link").symlink_to("d" * 120)
    os.link(long / "file", tree / "hard")
    done = subprocess.run(
        ["tar", "-c", "--format=pax", "--hard-dereference", "-C", str(tree), "."], capture_output=True, check=True
    )
    found = zipped([done.stdout[i : i + 1000] for i in range(0, len(done.stdout), 1000)], tmp_path)
    assert found[f"{'d' * 120}/{'é' * 90}/file"] == found["hard"] == b"x" * 70_000
    assert found["link"] == b"d" * 120


@pytest.mark.parametrize(
    "stream",
    [
        pax(GNU__sparse__major="1", GNU__sparse__realsize=str(2**60)) + member(data=b"0\n"),
        pax(GNU__sparse__size=str(2**60)) + member(),
        member(kind=b"S"),
        member(kind=b"L", data=b"name"),
        member(kind=b"x", data=b"a" * (MAX_EXTENDED + 1)),
        member(kind=b"g", data=b"a" * (MAX_EXTENDED + 1)),
        pax(size="9" * 19) + member(),
        pax(size="-1") + member(),
        pax(path="a" * 5000) + member(),
        member("d", b"5", b"data"),
        b"x" * BLOCK,
        member()[:100],
        member("q", b"6", b"data"),
    ],
    ids=["sparse 1.0", "sparse 0.1", "old sparse", "GNU's long name", "extended", "global", "size", "negative", "path",
         "directory with data", "noise", "cut", "queue with data"],
)  # fmt: skip
def test_what_no_honest_tar_sends_is_refused_and_leaves_no_file(stream: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadArchive):
        zip_of_tar(iter([stream + END]))
    assert list(tmp_path.iterdir()) == []


def test_pythons_own_reader_would_have_believed_a_sparse_member(tmp_path: Path) -> None:
    """The control."""
    archive = pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize=str(2**26)) + member(
        data=b"0\n".ljust(BLOCK, b"\0")
    )
    with tarfile.open(fileobj=io.BytesIO(archive + END)) as opened:
        assert opened.getmembers()[0].size == 2**26
        assert len(archive) < 4000


def test_no_more_is_written_than_was_allowed(tmp_path: Path) -> None:
    stream = member("a", data=b"x" * 600) + member("b", data=b"x" * 600) + END
    assert len(zipped([stream], tmp_path, max_bytes=1200)) == 2
    with pytest.raises(TooMuch, match="1199 bytes"):
        zip_of_tar(iter([stream]), max_bytes=1199)
    endless = pax(size=str(2**59)) + member()
    with pytest.raises(TooMuch):
        zip_of_tar(iter([endless]))
    assert list(tmp_path.iterdir()) == []


def test_nothing_stands_below_a_link_or_in_its_place_and_no_link_leads_out(tmp_path: Path) -> None:
    stream = (
        member("l", b"2", linkname="d")
        + member("l/below", data=b"1")
        + member("l", data=b"2")
        + member("out", b"2", linkname="/etc")
        + member("up", b"2", linkname="d/../../x")
        + member("d", b"5")
        + member("d/up", b"2", linkname="../x")
        + member("d/file", data=b"3")
        + END
    )
    assert zipped([stream], tmp_path) == {"l": b"d", "d/": b"", "d/up": b"../x", "d/file": b"3"}


FAMILIES: list[tuple[str, Callable[[int], bytes]]] = [
    ("small members", lambda n: member(data=b"x") * (n // 1024) + END),
    ("extended headers", lambda n: member(kind=b"x", data=b"") * (n // BLOCK)),
    ("one extended header", lambda n: member(kind=b"x", data=b"5 a=\n" * (min(n, MAX_EXTENDED) // 5))),
    ("digits", lambda n: member(kind=b"x", data=b"1" * min(n, MAX_EXTENDED))),
    ("links", lambda n: b"".join(member(f"l{i}", b"2", linkname="x") for i in range(n // BLOCK)) + END),
]


@pytest.mark.parametrize("make", [make for _, make in FAMILIES], ids=[name for name, _ in FAMILIES])
@pytest.mark.parametrize("piece", [64 * 1024, 1 << 30])
def test_reading_takes_linear_time_and_bounded_memory(make: Callable[[int], bytes], piece: int) -> None:
    streams = {size: make(size) for size in (250_000, 1_000_000)}

    def read(size: int) -> None:
        stream = streams[size]
        try:
            zip_of_tar(stream[i : i + piece] for i in range(0, len(stream), piece)).unlink()
        except BadArchive:
            return

    assert_linear(read, 250_000)
    assert peak_bytes(lambda: read(1_000_000)) < 8_000_000


@given(
    st.lists(
        st.sampled_from([member(), pax(path="a"), END, b"\0" * 7, member(data=b"x" * 600)]) | st.binary(max_size=600)
    )
)
def test_any_bytes_end_in_members_or_in_bad_archive(parts: list[bytes]) -> None:
    stream = io.BytesIO(b"".join(parts))
    try:
        for one in members(stream.read):
            assert one.kind in Kind
    except BadArchive:
        return
