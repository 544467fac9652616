"""What a sandbox may put into a volume leads the program that serves it nowhere else, and never stops it.

Each attack stands beside a control that shows that a plain call would have fallen for it.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.model.errors import InvalidRequest
from atoll.model.volume import check_paths, check_volume_name, is_volume_id
from atoll.volumes import content
from atoll.volumes.tree import UPLOAD, Entry, Owner, Tree, Upload

SECRET = "of the host"
ME = Owner(os.getuid(), os.getgid())
"""Makes the tests independent of who runs them."""


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A volume's top; beside it, out of it, lies a file of the host."""
    (tmp_path / "host").write_text(SECRET)
    (tmp_path / "etc").mkdir()
    place = tmp_path / "volume"
    place.mkdir()
    return place


@pytest.fixture
def tree(top: Path) -> Iterator[Tree]:
    root = os.open(top, os.O_PATH | os.O_DIRECTORY)
    yield Tree(root)
    os.close(root)


def read(tree: Tree, path: str) -> str:
    with os.fdopen(tree.open_file(path)) as file:
        return file.read()


def put(upload: Upload, text: str) -> None:
    upload.write(text.encode())
    upload.commit()
    upload.close()


def paths(tree: Tree, path: str = "/", depth: int = 1) -> list[str]:
    batches: Iterator[list[Entry]] = tree.listing(tree.open_directory(path), path, depth)
    return [one.path for batch in batches for one in batch]


@pytest.mark.parametrize("target", ["../host", "{host}", "sub/../../host", "/../../../../../..{host}"])
def test_a_link_never_leads_out(tree: Tree, top: Path, target: str) -> None:
    (top / "sub").mkdir()
    (top / "link").symlink_to(target.format(host=top.parent / "host"))
    (top / "away").symlink_to("..")
    assert (top / "away/host").read_text() == SECRET, "control: a plain look-up goes there"
    for way in ("/link", "/away/host", "/away/volume/../host"):
        with pytest.raises(FileNotFoundError):
            read(tree, way)
    put(tree.upload("/link", ME, parents=False), "mine")
    assert read(tree, "/link") == "mine", "the link was replaced, not followed"
    with pytest.raises(FileNotFoundError):
        tree.upload("/away/etc/new", ME, parents=False)
    tree.make_directory("/away/etc/new", ME, parents=True)
    assert not any((top.parent / "etc").iterdir())
    tree.remove("/away")
    (top / "away").exists()
    assert (top.parent / "host").read_text() == SECRET


def test_links_within_are_followed_for_reading_and_shown_as_links(tree: Tree, top: Path) -> None:
    (top / "a").mkdir()
    (top / "a/file").write_text("x")
    (top / "relative").symlink_to("a/file")
    (top / "absolute").symlink_to("/a/file")
    (top / "around").symlink_to("around")
    assert read(tree, "/relative") == read(tree, "/absolute") == "x"
    with pytest.raises(OSError, match="symbolic links") as caught:
        read(tree, "/around")
    assert caught.value.errno == errno.ELOOP
    entry = tree.entry("/absolute")
    assert (entry.kind, entry.target) == ("symlink", "/a/file")
    tree.change("/absolute", ME)
    with pytest.raises(OSError, match="symbolic links"):
        tree.change("/absolute", Owner(mode=0o777))
    tree.remove("/absolute")
    assert (top / "a/file").exists()


def test_a_directory_that_turns_into_a_link_meanwhile_leads_nowhere(tree: Tree, top: Path) -> None:
    """The classic race: checked as a directory, used as a link. The control loses it; the tree never does."""
    (top / "flip").mkdir()
    (top / "flip/host").write_text("inside")
    (top / "other").symlink_to("..")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(top / "flip", top / "spare")
            os.rename(top / "other", top / "flip")
            os.rename(top / "flip", top / "other")
            os.rename(top / "spare", top / "flip")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        fooled = False
        for _ in range(20_000):
            try:
                if not (top / "flip").is_symlink() and (top / "flip/host").read_text() == SECRET:
                    fooled = True
                    break
            except OSError:
                continue
        seen = set()
        for _ in range(3_000):
            try:
                seen.add(read(tree, "/flip/host"))
            except FileNotFoundError:
                continue
    finally:
        stop.set()
        swapping.join()
    assert seen <= {"inside"}
    assert fooled or seen, "control: there was a race at all"


def test_pipes_sockets_and_devices_are_never_opened_for_their_content(tree: Tree, top: Path) -> None:
    os.mkfifo(top / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        read(tree, "/pipe")  # a plain open would wait for a writer
    assert tree.entry("/pipe").kind == "unknown"
    assert tree.change("/pipe", Owner(mode=0o600)).found.st_mode & 0o777 == 0o600
    put(tree.upload("/pipe", ME, parents=False), "file now")
    assert read(tree, "/pipe") == "file now"
    if os.geteuid() == 0:
        os.mknod(top / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        with pytest.raises(OSError, match="no regular file"):
            read(tree, "/zero")
        tree.remove("/zero")


def test_names_that_are_no_text_deep_trees_and_many_entries(tree: Tree, top: Path) -> None:
    odd = os.fsencode(top) + b"/\xff\xfe"
    os.mkdir(odd)
    (shown,) = [content._out(one) for batch in tree.listing(tree.open_directory("/"), "/", 1) for one in batch]
    assert shown["name"] == "\ufffd\ufffd"

    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):  # far deeper than any path may be long
        os.mkdir("deep-deep-deep", dir_fd=here)
        below = os.open("deep-deep-deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    found = paths(tree, "/", 1 << 20)
    assert 100 < len(found) < 3000, "what has no path that could be asked for is left out"
    tree.remove("/deep-deep-deep")
    assert len(os.listdir("/proc/self/fd")) == before
    assert paths(tree) == ["/" + os.fsdecode(b"\xff\xfe")]

    (top / "many").mkdir()
    for number in range(5000):
        (top / f"many/{number:05}").touch()
    batches = [len(batch) for batch in tree.listing(tree.open_directory("/many"), "/many", 1)]
    assert sum(batches) == 5000
    assert len(batches) > 1
    tree.remove("/many")
    assert not (top / "many").exists()


def test_a_sparse_file_is_as_large_as_it_says(tree: Tree, top: Path) -> None:
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    entry = tree.entry("/sparse")
    assert entry.found.st_size == 1 << 40
    descriptor = tree.open_file("/sparse")
    assert os.pread(descriptor, 10, 1 << 39) == bytes(10)
    os.close(descriptor)


def test_an_upload_is_whole_or_not_there(tree: Tree, top: Path) -> None:
    (top / "file").write_text("before")
    os.chmod(top / "file", 0o640)
    upload = tree.upload("/file", ME, parents=False)
    upload.write(b"half")
    assert read(tree, "/file") == "before"
    upload.close()
    assert not [name for name in os.listdir(top) if name.startswith(UPLOAD)]
    upload = tree.upload("/file", ME, parents=False)
    upload.write(b"after")
    entry = upload.commit()
    upload.close()
    assert read(tree, "/file") == "after"
    assert stat.S_IMODE(entry.found.st_mode) == 0o640


def test_names_and_places_of_volumes() -> None:
    for name in ("a", "My_volume-1", "x" * 128):
        assert check_volume_name(name) == name
    assert is_volume_id("0d3f2f3e-1111-4222-8333-123456789abc")
    for text in ("", "0D3F2F3E-1111-4222-8333-123456789ABC", "0d3f2f3e111142228333123456789abc", "i1", "../x"):
        assert not is_volume_id(text)
    assert check_paths(["/data/", "//mnt//x"]) == ["/data", "/mnt/x"]
    for wrong in (["/"], ["/proc/1"], ["/.atoll/guest"], ["data"], ["/a/../b"], ["/a", "/a/b"], ["/a", "/a/"], ["/\n"]):
        with pytest.raises(InvalidRequest):
            check_paths(wrong)
    with pytest.raises(InvalidRequest, match="more than 8"):
        check_paths([f"/{number}" for number in range(9)])
