"""`/files` through the published SDK and through plain HTTP, on real files of this machine."""

from __future__ import annotations

import asyncio
import errno
import gzip
import io
import os
import re
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from _guest_files_server import GUEST_GID, GUEST_UID, async_sandbox, make_state, sandbox, serve, serve_in_thread
from e2b import (
    AuthenticationException,
    FileNotFoundException,
    InvalidArgumentException,
    NotEnoughSpaceException,
    Sandbox,
    SandboxException,
)

from atoll.guest.files import upload_body as arrivals
from atoll.guest.files import uploads
from atoll.guest.files.downloads import content_type, disposition
from atoll.guest.files.metadata import Kept
from atoll.guest.files.space import file_system_of, shortage
from atoll.guest.files.upload_body import PIECE, gunzip
from atoll.guest.process.users import User
from atoll.http1.server import HttpError

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="giving files to another user needs root")
TOKEN = "ea_token"
BIG = 3 * 1024 * 1024 + 17


@pytest.fixture
def home(tmp_path: Path) -> Path:
    if ROOT:
        os.chown(tmp_path, GUEST_UID, GUEST_GID)
    return tmp_path


@pytest.fixture
def url(home: Path) -> Iterator[str]:
    with serve_in_thread(make_state(str(home))) as address:
        yield address


@pytest.fixture
def sbx(url: str) -> Sandbox:
    return sandbox(url)


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client


def leftovers(home: Path) -> list[str]:
    return [str(path) for path in home.rglob("*") if path.name.startswith(".atoll")]


# -- through the SDK ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, 128 * 1024, 128 * 1024 + 1, BIG])
@pytest.mark.parametrize("octet_stream", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_what_was_written_is_read(sbx: Sandbox, home: Path, size: int, octet_stream: bool, packed: bool) -> None:
    data = os.urandom(size // 2) + bytes(size - size // 2)
    sbx.files.write("f", data, use_octet_stream=octet_stream or None, gzip=packed)
    assert (home / "f").read_bytes() == data
    assert sbx.files.read("f", format="bytes", gzip=packed) == data
    assert b"".join(sbx.files.read("f", format="stream", gzip=packed)) == data
    assert leftovers(home) == []


def test_text_streams_and_several_files_at_once(sbx: Sandbox, home: Path) -> None:
    sbx.files.write("text", "naïve 日本語")
    assert sbx.files.read("text") == "naïve 日本語"
    sbx.files.write("stream", io.BytesIO(b"s" * 300_000))
    assert sbx.files.read("stream", format="bytes") == b"s" * 300_000
    names = ["a.txt", "dir/b.txt", str(home / "c d"), "日本語", 'quo"te', "100%"]
    written = sbx.files.write_files([{"path": name, "data": name} for name in names])
    assert [info.name for info in written] == [os.path.basename(name) for name in names]
    for name in names:
        assert sbx.files.read(name) == name
    assert leftovers(home) == []


def test_the_same_path_twice_in_one_request_is_refused(sbx: Sandbox, home: Path) -> None:
    with pytest.raises(InvalidArgumentException, match="multiple files to the same path"):
        sbx.files.write_files([{"path": "a", "data": "1"}, {"path": "./a", "data": "2"}])
    assert (home / "a").read_text() == "1"


async def test_the_async_sdk_reads_and_writes(home: Path) -> None:
    async with serve(make_state(str(home))) as url:
        sbx = async_sandbox(url)
        data = os.urandom(BIG)
        await asyncio.gather(*(sbx.files.write(f"f{number}", data) for number in range(3)))
        read = await asyncio.gather(*(sbx.files.read(f"f{number}", format="bytes") for number in range(3)))
        assert all(content == data for content in read)
        reader = await sbx.files.read("f0", format="stream")
        assert b"".join([chunk async for chunk in reader]) == data


def test_what_is_made_belongs_to_the_user_and_what_exists_keeps_its_mode(sbx: Sandbox, home: Path) -> None:
    sbx.files.write("made/on/the/way/f", "x")
    script = home / "script"
    script.write_text("old")
    script.chmod(0o750)
    sbx.files.write("script", "new")
    assert stat.S_IMODE(script.stat().st_mode) == 0o750
    assert stat.S_IMODE((home / "made/on/the/way/f").stat().st_mode) == 0o644
    assert stat.S_IMODE((home / "made/on").stat().st_mode) == 0o755
    if ROOT:
        for path in (script, home / "made", home / "made/on/the/way", home / "made/on/the/way/f"):
            assert (path.stat().st_uid, path.stat().st_gid) == (GUEST_UID, GUEST_GID)


def test_links_are_followed_to_the_file(sbx: Sandbox, home: Path) -> None:
    (home / "dir").mkdir()
    (home / "dir" / "file").write_text("old")
    (home / "link").symlink_to("dir/file")
    (home / "fresh").symlink_to("dir/not-yet")
    (home / "dirlink").symlink_to("dir")
    assert sbx.files.write("link", "new").path == str(home / "link")
    sbx.files.write("fresh", "made")
    sbx.files.write("dirlink/inner", "x")
    assert (home / "link").is_symlink()
    assert (home / "dir" / "file").read_text() == "new"
    assert (home / "dir" / "not-yet").read_text() == "made"
    assert (home / "dir" / "inner").read_text() == "x"


def test_other_names_of_a_file_see_what_was_written(sbx: Sandbox, home: Path) -> None:
    (home / "one").write_text("longer than before")
    os.link(home / "one", home / "two")
    sbx.files.write("one", "new", metadata={"k": "v"})
    assert (home / "two").read_text() == "new"
    assert (home / "one").stat().st_nlink == 2
    assert sbx.files.get_info("two").metadata == {"k": "v"}
    assert leftovers(home) == []


def test_a_reader_of_the_old_file_keeps_it(sbx: Sandbox, home: Path) -> None:
    (home / "f").write_text("old content")
    with open(home / "f") as reader:
        sbx.files.write("f", "new")
        assert reader.read() == "old content"


def test_metadata_is_stored_shown_and_replaced_as_a_whole(sbx: Sandbox, home: Path) -> None:
    written = sbx.files.write("f", "x", metadata={"Author": "me", "b": "two words"})
    assert written.metadata == {"author": "me", "b": "two words"}
    assert sbx.files.get_info("f").metadata == {"author": "me", "b": "two words"}
    assert sbx.files.list(".")[0].metadata == {"author": "me", "b": "two words"}
    os.setxattr(home / "f", "user.other", b"kept")
    assert sbx.files.write("f", "y", metadata={"c": ""}).metadata == {"c": ""}
    assert sbx.files.get_info("f").metadata == {"c": ""}
    assert os.getxattr(home / "f", "user.other") == b"kept"
    sbx.files.write("f", "z")
    assert sbx.files.get_info("f").metadata is None


@pytest.mark.parametrize("metadata", [{"k" * 247: ""}, {"k": "v" * 4090}, {"a": "x" * 2100, "b": "y" * 2100}])
def test_metadata_beyond_what_a_file_can_hold_is_refused(sbx: Sandbox, home: Path, metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidArgumentException, match="metadata"):
        sbx.files.write("f", "x", metadata=metadata)
    assert os.listdir(home) == []


def test_what_is_no_file_is_neither_read_nor_written(sbx: Sandbox, home: Path) -> None:
    os.mkfifo(home / "fifo")
    (home / "dir").mkdir()
    (home / "file").write_text("")
    with pytest.raises(FileNotFoundException, match="does not exist"):
        sbx.files.read("missing")
    for path, text in (("fifo", "not a regular file"), ("/dev/zero", "not a regular file"), ("dir", "is a directory")):
        with pytest.raises(InvalidArgumentException, match=text):
            sbx.files.read(path)
        with pytest.raises(InvalidArgumentException, match=text):
            sbx.files.write(path, "x")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        sbx.files.write("file/below", "x")
    assert stat.S_ISFIFO((home / "fifo").stat().st_mode)
    assert leftovers(home) == []


def test_files_of_proc_are_read_although_they_have_no_size(sbx: Sandbox) -> None:
    assert sbx.files.read("/proc/sys/kernel/ostype") == "Linux\n"


def test_a_file_that_exists_where_none_can_be_made_is_written_in_place(
    sbx: Sandbox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "f").write_text("old and long")
    inode = (home / "f").stat().st_ino
    real = os.open

    def refuse(path: str | bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if isinstance(path, str) and path.startswith(uploads.TEMPORARY):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(uploads.os, "open", refuse)
    sbx.files.write("f", "new")
    assert ((home / "f").read_text(), (home / "f").stat().st_ino) == ("new", inode)
    with pytest.raises(SandboxException, match="permission denied"):
        sbx.files.write("g", "new")


def test_without_exchange_a_file_is_replaced_by_rename(
    sbx: Sandbox, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: int, one: str, other: str) -> None:
        raise OSError(22, "Invalid argument")

    (home / "f").write_text("old")
    monkeypatch.setattr(uploads, "exchange", refuse)
    sbx.files.write("f", "new")
    assert (home / "f").read_text() == "new"
    assert os.listdir(home) == ["f"]


async def test_a_directory_that_takes_the_name_during_an_upload_stays(home: Path) -> None:
    (home / "f").write_text("old")
    user = User("u", os.getuid(), os.getgid(), (), str(home), "/bin/sh")
    upload = uploads.Upload.begin(str(home / "f"), user, {}, Kept())
    upload.write(b"new")
    (home / "f").unlink()
    (home / "f").mkdir()
    (home / "f" / "kept").touch()
    with pytest.raises(HttpError, match="is a directory"):
        await upload.commit()
    assert (home / "f" / "kept").exists()
    assert os.listdir(home) == ["f"]


@needs_root
def test_a_mount_point_is_written_in_place(sbx: Sandbox, home: Path) -> None:
    for name in ("outside", "mounted"):
        (home / name).write_text("old and long")
    if os.system(f"mount --bind {home}/outside {home}/mounted 2>/dev/null") != 0:
        pytest.skip("bind mounts are not allowed here")
    try:
        sbx.files.write("mounted", "new")
        assert (home / "outside").read_text() == "new"
        assert leftovers(home) == []
    finally:
        os.system(f"umount {home}/mounted")


DISK = 1024 * 1024
PAGE = 4096
TOO_MUCH = 2 * DISK + 5


@pytest.fixture
def disk(home: Path) -> Iterator[Path]:
    """A file system of one mebibyte in the home directory, of which one page is used."""
    place = home / "disk"
    place.mkdir()
    if os.system(f"mount -t tmpfs -o size={DISK} tmpfs {place} 2>/dev/null") != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        (place / "f").write_text("old")
        yield place
        assert os.listdir(place) == ["f"]
        assert (place / "f").read_text() == "old"
    finally:
        os.system(f"umount {place}")


def numbers(said: str, disk: Path) -> tuple[bool, int]:
    """Whether what is needed is known and not just a minimum, and how much it is; what is free is always known."""
    found = re.fullmatch(
        rf".*'{disk}/f': not enough disk space: (at least )?(\d+) bytes(?: \(of a request of \d+\))? needed, "
        rf"{DISK - PAGE} bytes free in the file system at '{disk}'",
        said,
    )
    assert found is not None, said
    return found[1] is None, int(found[2])


@needs_root
@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_full_disk_is_said_in_numbers_and_the_old_file_stays(
    http: httpx.Client, disk: Path, gzipped: bool, chunked: bool
) -> None:
    data = os.urandom(TOO_MUCH)
    body = gzip.compress(data, 1) if gzipped else data
    headers = {"content-type": "application/octet-stream", **({"content-encoding": "gzip"} if gzipped else {})}
    content = iter([body[:DISK], body[DISK:]]) if chunked else body
    answer = http.post("/files", params={"path": f"{disk}/f"}, content=content, headers=headers)
    assert answer.status_code == 507
    exact, needed = numbers(answer.json()["message"], disk)
    assert exact is (not gzipped and not chunked)
    assert needed == TOO_MUCH if exact else DISK - PAGE < needed <= TOO_MUCH


@needs_root
def test_a_full_disk_is_said_of_the_file_among_several_that_did_not_fit(http: httpx.Client, disk: Path) -> None:
    parts = [("file", (f"{disk}/g", b"fits")), ("file", (f"{disk}/f", os.urandom(TOO_MUCH)))]
    answer = http.post("/files", files=parts)
    size = int(answer.request.headers["content-length"])
    (disk / "g").unlink()  # what came before is there
    assert answer.status_code == 507
    said = answer.json()["message"].replace(f"{DISK - 2 * PAGE} bytes free", f"{DISK - PAGE} bytes free")
    exact, needed = numbers(said, disk)
    assert not exact
    assert DISK - 2 * PAGE < needed < size
    assert f"(of a request of {size})" in said


@needs_root
def test_the_sdk_raises_its_own_error_for_a_full_disk(sbx: Sandbox, disk: Path) -> None:
    for data in (os.urandom(TOO_MUCH), io.BytesIO(os.urandom(TOO_MUCH))):
        with pytest.raises(NotEnoughSpaceException) as caught:
            sbx.files.write("disk/f", data)
        numbers(str(caught.value), disk)
    (disk.parent / "big").write_bytes(bytes(TOO_MUCH))
    with pytest.raises(SandboxException, match=f"{DISK - PAGE} bytes free in the file system at '{disk}'"):
        sbx.files.rename("big", "disk/big")


@needs_root
def test_a_file_with_other_names_keeps_its_content_when_the_new_one_does_not_fit(sbx: Sandbox, disk: Path) -> None:
    os.link(disk / "f", disk / "g")
    with pytest.raises(NotEnoughSpaceException, match=f"{DISK * 5 // 8} bytes needed"):
        sbx.files.write("disk/f", os.urandom(DISK * 5 // 8))  # there is room for it once, and not twice
    assert (disk / "g").read_text() == "old"
    (disk / "g").unlink()


@needs_root
def test_inodes_that_have_run_out_are_not_taken_for_bytes(sbx: Sandbox, home: Path) -> None:
    place = home / "few"
    place.mkdir()
    if os.system(f"mount -t tmpfs -o nr_inodes=2 tmpfs {place} 2>/dev/null") != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        sbx.files.write("few/one", "x")
        with pytest.raises(NotEnoughSpaceException, match=r"but all of its 2 files \(inodes\) are in use"):
            sbx.files.write("few/two", "x")
        with pytest.raises(SandboxException, match=r"but all of its 2 files \(inodes\) are in use"):
            sbx.files.make_dir("few/dir")
    finally:
        os.system(f"umount {place}")


def test_the_file_system_of_a_deep_path_is_found_step_by_step(home: Path) -> None:
    deep = os.open(home, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("d", dir_fd=deep)
        below = os.open("d", os.O_RDONLY, dir_fd=deep)
        os.close(deep)
        deep = below
    os.close(deep)
    path = str(home) + "/d" * 300
    above = home
    while not above.is_mount():
        above = above.parent
    assert file_system_of(f"{path}/new")[0] == str(above)
    assert file_system_of(f"{home}/not/yet/made")[0] == str(above)
    (home / "link").symlink_to("/proc")
    assert file_system_of(f"{home}/link/new")[0] == "/proc"
    assert file_system_of("/new")[0] == "/"


def test_a_quota_is_not_taken_for_a_full_disk(home: Path) -> None:
    said = shortage(OSError(errno.EDQUOT, "quota"), f"{home}/to/be/made", "7 bytes")
    assert re.fullmatch(r"disk quota exceeded: 7 bytes needed, \d+ bytes free in the file system at '/.*'", said)
    assert shortage(OSError(errno.ENOSPC, "full"), f"{home}/x").startswith("not enough disk space: ")


def test_an_unknown_user_is_said() -> None:
    from atoll.guest.process.users import Users
    from atoll.guest.state import GuestState
    from atoll.model.sandbox import SandboxSpec

    with serve_in_thread(GuestState(SandboxSpec("s", "t"), Users("/nonexistent", "/nonexistent"))) as url:
        with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
            sandbox(url).files.read("x", user="nobody-here")
        with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
            sandbox(url).files.write("x", "y", user="nobody-here")


# -- access ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def secured(home: Path) -> Iterator[str]:
    with serve_in_thread(make_state(str(home), TOKEN)) as address:
        yield address


def test_the_token_opens_and_nothing_else_does(secured: str) -> None:
    sandbox(secured, TOKEN).files.write("f", "x")
    for wrong in (sandbox(secured), sandbox(secured, "wrong")):
        with pytest.raises(AuthenticationException):
            wrong.files.read("f")
        with pytest.raises(AuthenticationException):
            wrong.files.write("f", "y")
        with pytest.raises(AuthenticationException):
            wrong.files.get_info("f")
    assert httpx.post(f"{secured}/files/compose", json={"source_paths": ["f"], "destination": "g"}).status_code == 401
    assert sandbox(secured, TOKEN).files.read("f") == "x"


def test_signed_urls_open_what_they_sign(secured: str, home: Path) -> None:
    sbx = sandbox(secured, TOKEN)
    up = sbx.upload_url("a b+c.txt", use_signature_expiration=60)
    answer = httpx.post(up, files={"file": ("ignored", b"data")})
    assert answer.json() == [{"path": str(home / "a b+c.txt"), "name": "a b+c.txt", "type": "file"}]
    down = sbx.download_url("a b+c.txt", user="user")
    assert httpx.get(down).content == b"data"
    assert httpx.head(down).headers["content-length"] == "4"
    for wrong in (up, down.replace("a%20b", "a%20c"), down.replace("username=user", "username=root")):
        answer = httpx.get(wrong)
        assert (answer.status_code, answer.json()["message"]) == (401, "invalid signature")
    assert httpx.post(down, files={"file": b"x"}).json() == {"code": 401, "message": "invalid signature"}
    late = sbx.download_url("a b+c.txt", use_signature_expiration=-5)
    assert httpx.get(late).json()["message"] == "signature is already expired"
    assert httpx.get(f"{secured}/files?path=f").json()["message"] == "missing signature query parameter"


# -- plain HTTP -----------------------------------------------------------------------------------------------------


def test_ranges_conditions_and_head(http: httpx.Client, home: Path) -> None:
    data = os.urandom(BIG)
    (home / "f.bin").write_bytes(data)
    where = {"path": "f.bin"}
    whole = http.get("/files", params=where)
    assert whole.headers["content-length"] == str(BIG)
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["vary"] == "Accept-Encoding"
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["content-disposition"] == "inline; filename=f.bin"
    for header, span in (
        ("bytes=0-99", slice(0, 100)),
        ("bytes=5-2000000", slice(5, 2_000_001)),
        ("bytes=-7", slice(-7, None)),
        (f"bytes={BIG - 1}-", slice(BIG - 1, None)),
    ):
        part = http.get("/files", params=where, headers={"range": header})
        assert part.status_code == 206
        assert part.content == data[span]
        start = span.indices(BIG)[0]
        assert part.headers["content-range"] == f"bytes {start}-{start + len(part.content) - 1}/{BIG}"
    beyond = http.get("/files", params=where, headers={"range": f"bytes={BIG}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{BIG}")
    tag, date = whole.headers["etag"], whole.headers["last-modified"]
    assert http.get("/files", params=where, headers={"if-none-match": tag}).status_code == 304
    assert http.get("/files", params=where, headers={"if-modified-since": date}).status_code == 304
    assert http.get("/files", params=where, headers={"range": "bytes=0-0", "if-range": '"old"'}).status_code == 200
    head = http.head("/files", params=where)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(BIG), b"")
    assert (
        http.get("/files", params=where, headers={"range": "bytes=0-3", "accept-encoding": "gzip"}).content == data[:4]
    )


@pytest.mark.parametrize("size", [10, BIG])
def test_gzip_is_sent_to_a_client_that_asks_for_it(http: httpx.Client, home: Path, size: int) -> None:
    (home / "f.txt").write_bytes(b"a" * size)
    packed = http.get("/files", params={"path": "f.txt"}, headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.headers["content-type"] == "text/plain; charset=utf-8"
    assert packed.content == b"a" * size
    library = http.get("/files", params={"path": "f.txt"}, headers={"accept-encoding": "gzip, deflate, br"})
    assert "content-encoding" not in library.headers
    head = http.head("/files", params={"path": "f.txt"}, headers={"accept-encoding": "gzip"})
    assert (head.status_code, head.content) == (200, b"")
    assert http.get("/files", params={"path": "f.txt"}, headers={"accept-encoding": "identity;q=0"}).status_code == 406


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"content-type": "text/plain"}, b"x", 400),
        ({}, b"x", 400),
        ({"content-type": "multipart/form-data"}, b"x", 400),
        ({"content-type": "multipart/form-data; boundary=B"}, b"no boundary here" * 1000, 400),
        ({"content-type": "multipart/form-data; boundary=B"}, b"--B--", 400),
        ({"content-type": "application/octet-stream", "content-encoding": "br"}, b"x", 415),
        ({"content-type": "application/octet-stream", "content-encoding": "gzip"}, b"not gzip", 400),
        ({"content-type": "application/octet-stream", "content-encoding": "gzip"}, b"", 400),
        ({"content-type": "application/octet-stream", "content-encoding": "gzip"}, gzip.compress(b"x" * 99)[:-4], 400),
    ],
)
def test_a_malformed_upload_is_refused_and_changes_nothing(
    http: httpx.Client, home: Path, headers: dict[str, str], content: bytes, status: int
) -> None:
    (home / "f").write_text("old")
    answer = http.post("/files", params={"path": "f"}, headers=headers, content=content)
    assert answer.status_code == status
    assert answer.json()["message"]
    assert (home / "f").read_text() == "old"
    assert os.listdir(home) == ["f"]


def test_an_upload_without_a_path_says_so(http: httpx.Client) -> None:
    answer = http.post("/files", headers={"content-type": "application/octet-stream"}, content=b"x")
    assert (answer.status_code, "'path'" in answer.json()["message"]) == (400, True)
    answer = http.post("/files", files={"file": ("", b"x")})
    assert answer.status_code == 400
    assert http.post("/files", data={"file": "x", "other": "y"}, files={"other2": b"z"}).status_code == 400


async def _cut(url: str, head: str, body: bytes) -> None:
    """A client that goes away in the middle of its upload."""
    parts = urlsplit(url)
    _, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(head.encode() + body)
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "head",
    [
        "content-type: application/octet-stream\r\ncontent-length: 1000000\r\n",
        "content-type: multipart/form-data; boundary=B\r\ncontent-length: 1000000\r\n",
    ],
)
async def test_a_torn_upload_leaves_the_old_file_and_nothing_else(home: Path, head: str) -> None:
    (home / "f").write_text("old")
    async with serve(make_state(str(home))) as url:
        body = b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\n' if "multipart" in head else b""
        task = asyncio.create_task(
            _cut(url, f"POST /files?path=f HTTP/1.1\r\nhost: x\r\n{head}\r\n", body + b"x" * 300_000)
        )
        seen: set[int] = set()
        while not task.done():
            seen.add(len(leftovers(home)))
            await asyncio.sleep(0.005)
        await task
        for _ in range(200):
            if not leftovers(home):
                break
            await asyncio.sleep(0.01)
    assert 1 in seen  # it had begun
    assert os.listdir(home) == ["f"]
    assert (home / "f").read_text() == "old"


async def test_a_silent_upload_is_given_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "IDLE_S", 0.2)
    async with serve(make_state(str(home))) as url:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(
            b"POST /files?path=f HTTP/1.1\r\nhost: x\r\n"
            b"content-type: application/octet-stream\r\ncontent-length: 9\r\n\r\n1"
        )
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()
    assert os.listdir(home) == []


async def test_downloads_that_nobody_finishes_leave_no_descriptor(home: Path) -> None:
    (home / "big").write_bytes(bytes(50_000_000))
    async with serve(make_state(str(home))) as url:
        parts = urlsplit(url)
        before = len(os.listdir("/proc/self/fd"))
        for accept in ("identity", "gzip"):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(f"GET /files?path=big HTTP/1.1\r\nhost: x\r\naccept-encoding: {accept}\r\n\r\n".encode())
            await asyncio.sleep(0.1)
            writer.transport.abort()
        _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(b"HEAD /files?path=big HTTP/1.1\r\nhost: x\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n")
        await asyncio.sleep(0.1)
        writer.close()
        for _ in range(200):
            if len(os.listdir("/proc/self/fd")) <= before:
                break
            await asyncio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) <= before


def test_compose_joins_files_and_takes_the_sources_away(http: httpx.Client, home: Path) -> None:
    first, second = os.urandom(5_000_000), os.urandom(10)
    (home / "1").write_bytes(first)
    (home / "2").write_bytes(second)
    answer = http.post("/files/compose", json={"source_paths": ["1", "2", "2"], "destination": "made/whole"})
    assert answer.json() == {"path": str(home / "made/whole"), "name": "whole", "type": "file"}
    assert (home / "made/whole").read_bytes() == first + second + second
    assert sorted(os.listdir(home)) == ["made"]
    # The destination may be one of the sources.
    (home / "3").write_text("more")
    http.post("/files/compose", json={"source_paths": ["made/whole", "3"], "destination": "made/whole"})
    assert (home / "made/whole").read_bytes() == first + second + second + b"more"


@pytest.mark.parametrize(
    "order",
    [[], {}, {"source_paths": "x", "destination": "y"}, {"source_paths": [1], "destination": "y"},
     {"source_paths": [], "destination": "y"}, {"source_paths": ["x"], "destination": ""},
     {"source_paths": ["x"], "destination": "y", "username": 3}],
)  # fmt: skip
def test_a_malformed_compose_is_refused(http: httpx.Client, order: object) -> None:
    assert http.post("/files/compose", json=order).status_code == 400


def test_a_compose_with_a_missing_source_changes_nothing(http: httpx.Client, home: Path) -> None:
    (home / "1").write_text("x")
    answer = http.post("/files/compose", json={"source_paths": ["1", "missing"], "destination": "1"})
    assert answer.status_code == 404
    assert os.listdir(home) == ["1"]
    assert (home / "1").read_text() == "x"


def test_concurrent_writers_leave_one_of_their_contents(sbx: Sandbox, home: Path) -> None:
    contents = [bytes([number]) * 400_000 for number in range(6)]
    threads = [threading.Thread(target=sbx.files.write, args=("f", content)) for content in contents]
    for thread in threads:
        thread.start()
    seen: set[bytes] = set()
    while any(thread.is_alive() for thread in threads):
        if (home / "f").exists():
            seen.add((home / "f").read_bytes())
    for thread in threads:
        thread.join()
    seen.add((home / "f").read_bytes())
    assert seen <= set(contents)
    assert os.listdir(home) == ["f"]


# -- pure -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.txt", "inline; filename=a.txt"),
        ("a b.txt", 'inline; filename="a b.txt"'),
        ('a"\\', 'inline; filename="a\\"\\\\"'),
        ("naïve", "inline; filename*=utf-8''na%C3%AFve"),
        ("a\r\nb", "inline; filename*=utf-8''a%0D%0Ab"),
        ("caf\udce9", "inline; filename*=utf-8''caf%E9"),
        ("", "inline"),
    ],
)
def test_names_in_content_disposition(name: str, header: str) -> None:
    assert disposition(name) == header


def test_content_types_come_from_the_name() -> None:
    assert content_type("/a/b.HTML") == "text/html; charset=utf-8"
    assert content_type("/a/b.png") == "image/png"
    assert content_type("/a/b") == "application/octet-stream"


async def _chunks(data: bytes, size: int) -> Iterator[bytes]:  # type: ignore[misc]
    for at in range(0, len(data), size):
        yield data[at : at + size]


@pytest.mark.parametrize("size", [1, 7, 1000, 10_000_000])
async def test_gzip_bodies_unpack_whatever_the_cuts_and_in_several_members(size: int) -> None:
    plain = os.urandom(500) + bytes(700_000) + os.urandom(500)
    packed = gzip.compress(plain) + gzip.compress(b"second")
    pieces = [piece async for piece in gunzip(_chunks(packed, size))]  # type: ignore[arg-type]
    assert b"".join(pieces) == plain + b"second"
    assert max(map(len, pieces)) <= PIECE


async def test_a_bomb_is_unpacked_in_pieces() -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    size = 0
    async for piece in gunzip(_chunks(bomb, len(bomb))):  # type: ignore[arg-type]
        assert len(piece) <= PIECE
        size += len(piece)
    assert size == 64 * 1024 * 1024


@pytest.mark.parametrize("cut", [1, 5, 12])
async def test_a_gzip_body_cut_short_is_refused(cut: int) -> None:
    with pytest.raises(HttpError, match=r"ends early|damaged"):
        async for _ in gunzip(_chunks(gzip.compress(b"x" * 1000)[:-cut], 10)):  # type: ignore[arg-type]
            pass


def test_an_upload_that_is_aborted_twice_is_no_trouble(home: Path) -> None:
    user = User("u", os.getuid(), os.getgid(), (), str(home), "/bin/sh")
    upload = uploads.Upload.begin(str(home / "f"), user, {}, Kept())
    upload.write(b"x")
    upload.abort()
    upload.abort()
    assert os.listdir(home) == []
