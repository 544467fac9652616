"""filesystem.Filesystem as the published SDK sees it, on real files of this machine."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from _guest_files_server import GUEST_GID, GUEST_UID, make_state, sandbox, serve_in_thread
from connectrpc.errors import ConnectError as SdkConnectError
from e2b import FileNotFoundException, FileType, InvalidArgumentException, Sandbox, SandboxException
from e2b.envd.filesystem import filesystem_pb

from atoll.guest.files import directories
from atoll.guest.files import safe_open as handles
from atoll.guest.files import service as filesystem
from atoll.guest.files.copying import TEMPORARY_MOVE, copy_entry
from atoll.guest.files.entries import permissions
from atoll.guest.files.metadata import Kept

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="giving files to another user needs root")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    if ROOT:
        os.chown(tmp_path, GUEST_UID, GUEST_GID)
    return tmp_path


@pytest.fixture
def sbx(home: Path) -> Iterator[Sandbox]:
    with serve_in_thread(make_state(str(home))) as url:
        yield sandbox(url)


def open_below(place: Path) -> list[str]:
    """What of a tree this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # that of the listing
            continue
        except OSError:
            found.append(f"{place}: a path that is too long")
    return [path for path in found if path.startswith(str(place))]


def test_info_of_a_file_is_what_the_sdk_documents(sbx: Sandbox, home: Path) -> None:
    file = home / "naïve.txt"
    file.write_text("hello")
    file.chmod(0o640)
    os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    info = sbx.files.get_info("naïve.txt")
    assert (info.name, info.path, info.type, info.size) == ("naïve.txt", str(file), FileType.FILE, 5)
    assert (info.mode, info.permissions) == (0o640, "-rw-r-----")
    assert info.owner == ("root" if os.geteuid() == 0 else info.owner)
    assert info.modified_time is not None
    assert info.modified_time.timestamp() == pytest.approx(1_700_000_000.123456)
    assert info.symlink_target is None
    assert info.metadata is None


def test_info_of_directories_and_the_root(sbx: Sandbox, home: Path) -> None:
    (home / "d").mkdir(mode=0o755)
    info = sbx.files.get_info("d/")
    assert (info.type, info.mode, info.permissions) == (FileType.DIR, 0o755, "drwxr-xr-x")
    root = sbx.files.get_info("/")
    assert (root.name, root.path, root.type) == ("/", "/", FileType.DIR)
    assert sbx.files.get_info("~").path == str(home)
    assert sbx.files.get_info("").path == str(home)


def test_a_path_that_names_nothing_removes_and_moves_nothing(sbx: Sandbox, home: Path) -> None:
    for attempt in (
        lambda: sbx.files.remove(""),
        lambda: sbx.files.rename("", "/tmp/elsewhere"),
        lambda: sbx.files.rename("there", ""),
    ):
        (home / "there").write_text("kept")
        with pytest.raises(InvalidArgumentException, match="is empty"):
            attempt()
        assert (home / "there").read_text() == "kept"


def test_a_link_tells_where_it_leads_and_a_dangling_one_stays_visible(sbx: Sandbox, home: Path) -> None:
    (home / "file").write_text("12345")
    (home / "dir").mkdir()
    (home / "to-file").symlink_to("file")
    (home / "to-link").symlink_to("to-file")
    (home / "to-dir").symlink_to(home / "dir")
    (home / "nowhere").symlink_to("missing")
    listed = {entry.name: entry for entry in sbx.files.list(".")}
    assert {name: listed[name].type for name in ("to-file", "to-link", "to-dir", "nowhere")} == dict.fromkeys(
        ("to-file", "to-link", "to-dir", "nowhere"), FileType.SYMLINK
    )
    assert listed["to-file"].symlink_target == listed["to-link"].symlink_target == str(home / "file")
    assert listed["to-dir"].symlink_target == str(home / "dir")
    assert listed["nowhere"].symlink_target == "missing"
    assert listed["to-file"].permissions == "Lrwxrwxrwx"


def test_a_link_has_its_targets_type_for_clients_that_know_no_links(home: Path) -> None:
    """E2B's envd sends the target's type; the JavaScript SDK shows it."""
    (home / "to-home").symlink_to(home)
    entry = filesystem.entry_at(str(home / "to-home"), make_state(str(home)).users, Kept())
    assert entry.is_symlink
    assert entry.type == filesystem_pb.FileType.DIRECTORY.value


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (stat.S_IFREG | 0o644, "-rw-r--r--"),
        (stat.S_IFDIR | 0o1777, "dtrwxrwxrwx"),
        (stat.S_IFREG | 0o4755, "urwxr-xr-x"),
        (stat.S_IFCHR | 0o620, "Dcrw--w----"),
        (stat.S_IFIFO | 0o600, "prw-------"),
    ],
)
def test_permissions_are_written_as_go_writes_them(mode: int, text: str) -> None:
    assert permissions(mode) == text


def test_what_is_not_there_is_not_found(sbx: Sandbox, home: Path) -> None:
    (home / "file").write_text("")
    for path in ("missing", "missing/deeper", "file/deeper", "/nope"):
        assert sbx.files.exists(path) is False
        with pytest.raises(FileNotFoundException):
            sbx.files.get_info(path)
        with pytest.raises(FileNotFoundException):
            sbx.files.list(path)
        with pytest.raises(FileNotFoundException, match="source file not found"):
            sbx.files.rename(path, "x")


def test_directories_are_made_with_all_above_them_and_belong_to_the_user(sbx: Sandbox, home: Path) -> None:
    assert sbx.files.make_dir("a/b/c") is True
    assert sbx.files.make_dir("a/b/c") is False
    (home / "file").write_text("")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        sbx.files.make_dir("file")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        sbx.files.make_dir("file/below")
    for part in ("a", "a/b", "a/b/c"):
        found = (home / part).stat()
        assert stat.S_IMODE(found.st_mode) == 0o755
        if ROOT:
            assert (found.st_uid, found.st_gid) == (GUEST_UID, GUEST_GID)


def test_a_listing_is_in_order_and_as_deep_as_asked(sbx: Sandbox, home: Path) -> None:
    for path in ("b/y/deep", "b/x", "a", "c"):
        target = home / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("") if path != "c" else target.mkdir()
    (home / "loop").symlink_to(home)
    below = len(str(home)) + 1

    def listed(depth: int) -> list[str]:
        return [entry.path[below:] for entry in sbx.files.list(".", depth=depth)]

    assert listed(1) == ["a", "b", "c", "loop"]
    assert listed(2) == ["a", "b", "b/x", "b/y", "c", "loop"]
    assert listed(50) == ["a", "b", "b/x", "b/y", "b/y/deep", "c", "loop"]
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        sbx.files.list("a")
    # A link to a directory is listed below the name that was asked for.
    (home / "link").symlink_to("b")
    assert [entry.path for entry in sbx.files.list("link")] == [str(home / "link" / name) for name in ("x", "y")]


def test_ten_thousand_entries_and_names_in_any_encoding(sbx: Sandbox, home: Path) -> None:
    directory = home / "many"
    directory.mkdir()
    for number in range(10_000):
        (directory / f"{number:05}").touch()
    with open(os.fsencode(directory) + b"/caf\xe9\xff", "wb"):
        pass
    (directory / "日本語\n").touch()
    names = [entry.name for entry in sbx.files.list("many")]
    assert names[:10_000] == [f"{number:05}" for number in range(10_000)]
    assert sorted(names[10_000:]) == sorted(["caf\ufffd\ufffd", "日本語\n"])


def test_a_deep_tree_is_listed_and_removed(sbx: Sandbox, home: Path) -> None:
    """Deeper than PATH_MAX: only relative steps lead there."""
    fd = os.open(home, os.O_RDONLY)
    for name in ["deep"] + ["d" * 20] * 300:
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    assert len(sbx.files.list("deep", depth=1_000_000)) > 150
    sbx.files.remove("deep")
    assert not (home / "deep").exists()
    assert open_below(home / "deep") == []


def test_remove_takes_files_links_and_trees_and_is_content_with_nothing(sbx: Sandbox, home: Path) -> None:
    (home / "outside").mkdir()
    (home / "outside" / "kept").write_text("x")
    tree = home / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").write_text("x")
    (tree / "link").symlink_to(home / "outside")
    os.mkfifo(tree / "fifo")
    (home / "link").symlink_to("outside")
    sbx.files.remove("tree")
    sbx.files.remove("link")
    sbx.files.remove("missing")
    sbx.files.remove("outside/kept/below-a-file")
    assert sorted(os.listdir(home)) == ["outside"]
    assert (home / "outside" / "kept").exists()


def test_the_root_is_not_removed(sbx: Sandbox) -> None:
    for path in ("/", "/tmp/.."):
        with pytest.raises(SandboxException, match="cannot remove"):
            sbx.files.remove(path)


def test_rename_replaces_files_makes_directories_and_moves_trees(sbx: Sandbox, home: Path) -> None:
    (home / "a").write_text("new")
    (home / "b").write_text("old")
    info = sbx.files.rename("a", "b")
    assert (info.name, info.size, (home / "b").read_text()) == ("b", 3, "new")
    sbx.files.rename("b", "made/on/the/way")
    assert (home / "made/on/the/way").read_text() == "new"
    sbx.files.rename("made", "moved")
    assert (home / "moved/on/the/way").exists()
    (home / "full").mkdir()
    (home / "full" / "x").touch()
    with pytest.raises(SandboxException, match="error renaming"):
        sbx.files.rename("moved", "full")
    assert (home / "moved/on/the/way").exists()
    (home / "dangling").symlink_to("nowhere")
    assert sbx.files.rename("dangling", "dangling2").symlink_target == "nowhere"


def test_rename_to_another_file_system_copies_all_there_is(sbx: Sandbox, home: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == home.stat().st_dev:
        pytest.skip("no second file system: /dev/shm is missing or the same as the temporary directory")
    target = other / f"atoll-test-{os.getpid()}"
    tree = home / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "file").write_bytes(os.urandom(100_000))
    (tree / "inner" / "file").chmod(0o751)
    (tree / "link").symlink_to("inner/file")
    content = (tree / "inner" / "file").read_bytes()
    mtime = (tree / "inner" / "file").stat().st_mtime_ns
    try:
        sbx.files.rename("tree", str(target))
        assert not tree.exists()
        moved = (target / "inner" / "file").stat()
        assert (target / "inner" / "file").read_bytes() == content
        assert (stat.S_IMODE(moved.st_mode), moved.st_mtime_ns) == (0o751, mtime)
        assert os.readlink(target / "link") == "inner/file"
    finally:
        sbx.files.remove(str(target))
    assert not [name for name in os.listdir(other) if name.startswith(TEMPORARY_MOVE)]


async def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    deep = tmp_path / "source"
    deep.joinpath(*["d"] * 120).mkdir(parents=True)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="deeper than"):
            await copy_entry(fd, "source", fd, ".copy", Kept())
        await directories.remove_at(fd, ".copy")
    finally:
        os.close(fd)
    assert os.listdir(tmp_path) == ["source"]


@needs_root
def test_what_only_root_may_read_is_read_as_in_e2b(sbx: Sandbox, home: Path) -> None:
    secret = home / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").write_text("x")
    (secret / "file").chmod(0o600)
    os.chown(secret, 0, 0)
    assert [entry.name for entry in sbx.files.list("secret")] == ["file"]
    assert sbx.files.read("secret/file") == "x"


@pytest.mark.parametrize(
    "path", ["/proc/self/exe", "/proc/self/root/etc/passwd", "/proc/self/fd/0", "/proc/self/cwd/x"]
)
def test_magic_links_lead_nowhere(path: str) -> None:
    with pytest.raises(OSError, match=r"symbolic links|Permission|No such|not readable"):
        os.close(handles.open_path(path, os.O_RDONLY))


def test_the_daemons_own_proc_is_shut_and_the_rest_of_proc_open(sbx: Sandbox, home: Path) -> None:
    own = f"/proc/{os.getpid()}"
    (home / "link").symlink_to(own)
    for path in (own, "/proc/self", "/proc/thread-self", "link"):
        with pytest.raises(SandboxException):
            sbx.files.list(path)
    for path in (f"{own}/environ", "/proc/self/environ", "/proc/self/maps", "link/environ", "/proc/self/exe"):
        with pytest.raises(SandboxException):
            sbx.files.read(path)
    assert "MemTotal" in sbx.files.read("/proc/meminfo")
    assert sbx.files.exists("/proc/meminfo")


def test_without_openat2_magic_links_are_resolved_as_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(handles, "_HAS_OPENAT2", False)
    hidden = tmp_path / "hidden"
    hidden.write_text("guest's own")
    fd = os.open(hidden, os.O_RDONLY)
    hidden.unlink()
    try:
        with pytest.raises(OSError, match="No such file"):
            os.close(handles.open_path(f"/proc/self/fd/{fd}", os.O_RDONLY))
        with pytest.raises(OSError, match="not readable"):
            os.close(handles.open_path("/proc/self/environ", os.O_RDONLY))
    finally:
        os.close(fd)


def test_paths_that_cannot_be_are_refused(sbx: Sandbox) -> None:
    for path in ("a\0b", "~nobody/x", "x" * 5000, "/" + "x" * 300):
        with pytest.raises(InvalidArgumentException):
            sbx.files.get_info(path)


def test_a_loop_of_links_is_an_error_and_not_a_hang(sbx: Sandbox, home: Path) -> None:
    (home / "one").symlink_to("two")
    (home / "two").symlink_to("one")
    with pytest.raises(InvalidArgumentException):
        sbx.files.list("one")
    assert sbx.files.get_info("one").type is FileType.SYMLINK


async def test_removal_goes_on_while_others_write_into_the_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(600):
        (tree / f"d{number}").mkdir(parents=True)
        (tree / f"d{number}" / "f").touch()
    made = 0

    async def disturb() -> None:
        nonlocal made
        while made < 20:
            (tree / f"late{made}").touch()
            made += 1
            await asyncio.sleep(0)

    await asyncio.gather(directories.remove(str(tree)), disturb(), return_exceptions=True)
    await directories.remove(str(tree))
    assert made
    assert not tree.exists()


def test_every_failure_reaches_the_sdk_as_an_exception_of_its_own(sbx: Sandbox) -> None:
    with pytest.raises((SandboxException, SdkConnectError)):
        sbx.files.make_dir("/proc/nope/x")
