"""Files through the published Python SDK, synchronous flavour."""

from __future__ import annotations

import hashlib
import io
import os
from datetime import UTC, datetime, timedelta

import pytest
from e2b import (
    AuthenticationException,
    FileNotFoundException,
    FileType,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
)

MIB = 1024 * 1024


def test_text_comes_back_as_written(sandbox: Sandbox) -> None:
    text = "first\nžluť 🦄\r\nlast without newline"
    info = sandbox.files.write("note.txt", text)
    assert (info.path, info.name, info.type) == ("/home/user/note.txt", "note.txt", FileType.FILE)
    assert sandbox.files.read("note.txt") == text
    assert sandbox.commands.run("cat note.txt").stdout == text


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 3 * MIB + 1])
@pytest.mark.parametrize("octet", [False, True], ids=["multipart", "octet-stream"])
def test_bytes_come_back_as_written(sandbox: Sandbox, size: int, octet: bool) -> None:
    data = os.urandom(size)
    sandbox.files.write("blob", data, use_octet_stream=octet)
    assert bytes(sandbox.files.read("blob", format="bytes")) == data


def test_gzip_on_the_way_in_and_out_changes_nothing(sandbox: Sandbox) -> None:
    data = b"squeeze me " * 50_000
    sandbox.files.write("zipped", data, gzip=True)
    assert sandbox.commands.run("sha256sum < zipped").stdout.split()[0] == hashlib.sha256(data).hexdigest()
    assert bytes(sandbox.files.read("zipped", format="bytes", gzip=True)) == data


def test_a_generator_is_streamed_in(sandbox: Sandbox) -> None:
    sandbox.files.write("gen", (bytes([n]) * 10_000 for n in range(100)))
    assert bytes(sandbox.files.read("gen", format="bytes")) == b"".join(bytes([n]) * 10_000 for n in range(100))


def test_a_file_object_is_streamed_in(sandbox: Sandbox) -> None:
    sandbox.files.write("obj", io.BytesIO(b"from an object"))
    sandbox.files.write("txt", io.StringIO("from téxt"))
    assert sandbox.files.read("obj") == "from an object"
    assert sandbox.files.read("txt") == "from téxt"


def test_a_stream_out_can_be_read_piece_by_piece(sandbox: Sandbox) -> None:
    data = os.urandom(5 * MIB)
    sandbox.files.write("blob", data)
    with sandbox.files.read("blob", format="stream") as stream:
        pieces = list(stream)
    assert len(pieces) > 1
    assert b"".join(pieces) == data


def test_a_stream_may_be_left_half_read(sandbox: Sandbox) -> None:
    sandbox.files.write("blob", os.urandom(20 * MIB))
    with sandbox.files.read("blob", format="stream") as stream:
        next(stream)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def test_a_hundred_megabytes_each_way(sandbox: Sandbox, tmp_path) -> None:
    block = os.urandom(MIB)
    local = tmp_path / "big"
    digest = hashlib.sha256()
    with local.open("wb") as file:
        for n in range(100):
            piece = n.to_bytes(4, "big") + block[4:]
            file.write(piece)
            digest.update(piece)
    with local.open("rb") as file:
        sandbox.files.write("big", file)
    assert sandbox.commands.run("sha256sum < big").stdout.split()[0] == digest.hexdigest()
    back = hashlib.sha256()
    for piece in sandbox.files.read("big", format="stream"):
        back.update(piece)
    assert back.hexdigest() == digest.hexdigest()


def test_a_hundred_megabytes_in_one_piece_of_memory(sandbox: Sandbox) -> None:
    data = os.urandom(MIB) * 100
    sandbox.files.write("big", data)
    assert bytes(sandbox.files.read("big", format="bytes")) == data


def test_writing_again_replaces(sandbox: Sandbox) -> None:
    sandbox.files.write("note", "a long first version")
    sandbox.files.write("note", "short")
    assert sandbox.files.read("note") == "short"


def test_many_files_in_one_call(sandbox: Sandbox) -> None:
    files = [{"path": f"many/f{n}.txt", "data": f"content {n}"} for n in range(30)]
    written = sandbox.files.write_files(files)
    assert [info.path for info in written] == [f"/home/user/many/f{n}.txt" for n in range(30)]
    assert sandbox.files.read("many/f29.txt") == "content 29"
    assert sandbox.files.write_files([]) == []


def test_missing_directories_are_made_for_the_user(sandbox: Sandbox) -> None:
    sandbox.files.write("deep/er/and/deeper.txt", "x")
    info = sandbox.files.get_info("deep/er")
    assert (info.type, info.owner, info.group) == (FileType.DIR, "user", "user")
    assert info.permissions.endswith("rwxr-xr-x")


@pytest.mark.parametrize("user", ["user", "root"])
def test_what_a_user_writes_belongs_to_that_user(sandbox: Sandbox, user: str) -> None:
    sandbox.files.write("/tmp/owned", "x", user=user)
    info = sandbox.files.get_info("/tmp/owned")
    assert (info.owner, info.group) == (user, user)
    assert info.permissions.endswith("rw-r--r--")
    assert info.mode & 0o777 == 0o644


def test_relative_paths_and_tilde_start_at_home(sandbox: Sandbox) -> None:
    sandbox.files.write("~/tilde", "x")
    assert sandbox.files.get_info("tilde").path == "/home/user/tilde"
    sandbox.files.write("rooted", "x", user="root")
    assert sandbox.files.get_info("rooted", user="root").path == "/root/rooted"


@pytest.mark.parametrize("name", ["with space", "ünïcödé 🦄", "per%cent", "plus+sign", "quo'te\"s", "a&b=c", "#hash?"])
def test_awkward_names_are_just_names(sandbox: Sandbox, name: str) -> None:
    sandbox.files.write(f"names/{name}", name)
    assert sandbox.files.read(f"names/{name}") == name
    assert [entry.name for entry in sandbox.files.list("names")] == [name]
    assert sandbox.files.rename(f"names/{name}", "names/plain").name == "plain"


def test_info_tells_the_facts_of_a_file(sandbox: Sandbox) -> None:
    sandbox.files.write("note", "12345")
    sandbox.commands.run("chmod 640 note && ln -s note link")
    info = sandbox.files.get_info("note")
    assert (info.name, info.path, info.type, info.size) == ("note", "/home/user/note", FileType.FILE, 5)
    assert info.mode & 0o777 == 0o640
    assert info.permissions.endswith("rw-r-----")
    assert abs(info.modified_time.replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=2)
    assert info.symlink_target is None
    link = sandbox.files.get_info("link")
    assert link.symlink_target in ("note", "/home/user/note")


def test_list_names_each_entry_with_its_type(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("d/sub/deep")
    sandbox.files.write("d/a.txt", "a")
    sandbox.files.write("d/sub/b.txt", "bb")
    flat = {entry.name: entry for entry in sandbox.files.list("d")}
    assert {name: entry.type for name, entry in flat.items()} == {"a.txt": FileType.FILE, "sub": FileType.DIR}
    assert flat["a.txt"].path == "/home/user/d/a.txt"
    two = {entry.path for entry in sandbox.files.list("d", depth=2)}
    assert two == {f"/home/user/d/{rest}" for rest in ("a.txt", "sub", "sub/b.txt", "sub/deep")}


def test_a_directory_of_three_thousand_entries_is_listed_whole(sandbox: Sandbox) -> None:
    sandbox.commands.run("mkdir many && cd many && touch $(seq 1 3000)")
    assert {entry.name for entry in sandbox.files.list("many")} == {str(n) for n in range(1, 3001)}


def test_depth_below_one_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(InvalidArgumentException):
        sandbox.files.list("/", depth=0)


def test_make_dir_is_true_once(sandbox: Sandbox) -> None:
    assert sandbox.files.make_dir("new/dir") is True
    assert sandbox.files.make_dir("new/dir") is False
    assert sandbox.files.exists("new/dir")
    assert sandbox.files.get_info("new/dir").owner == "user"


def test_make_dir_over_a_file_is_refused(sandbox: Sandbox) -> None:
    sandbox.files.write("taken", "x")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.make_dir("taken")


def test_exists_knows_files_directories_and_nothing(sandbox: Sandbox) -> None:
    sandbox.files.write("f", "")
    assert sandbox.files.exists("f") is True
    assert sandbox.files.exists("/home/user") is True
    assert sandbox.files.exists("no-such") is False


def test_rename_moves_files_and_trees_and_replaces(sandbox: Sandbox) -> None:
    sandbox.files.write("tree/leaf", "leaf")
    assert sandbox.files.rename("tree", "moved").path == "/home/user/moved"
    assert sandbox.files.read("moved/leaf") == "leaf"
    assert not sandbox.files.exists("tree")
    sandbox.files.write("new", "new")
    sandbox.files.write("old", "old")
    sandbox.files.rename("new", "old")
    assert sandbox.files.read("old") == "new"


def test_remove_takes_files_and_whole_trees(sandbox: Sandbox) -> None:
    sandbox.files.write("tree/a/b/c", "x")
    sandbox.files.remove("tree")
    assert not sandbox.files.exists("tree")
    sandbox.files.write("single", "x")
    sandbox.files.remove("single")
    assert not sandbox.files.exists("single")


def test_removing_nothing_is_no_error(sandbox: Sandbox) -> None:
    sandbox.files.remove("was/never/there")
    assert not sandbox.files.exists("was")


def test_missing_paths_are_not_found(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundException, match="no-such"):
        sandbox.files.read("no-such")
    with pytest.raises(FileNotFoundException):
        sandbox.files.read("no-such", format="stream")
    with pytest.raises(FileNotFoundException):
        sandbox.files.list("no-such")
    with pytest.raises(FileNotFoundException):
        sandbox.files.get_info("no-such")
    with pytest.raises(FileNotFoundException):
        sandbox.files.rename("no-such", "other")


def test_a_directory_is_no_file_and_a_file_is_no_directory(sandbox: Sandbox) -> None:
    sandbox.files.write("file", "x")
    with pytest.raises(InvalidArgumentException, match="directory"):
        sandbox.files.read("/home/user")
    with pytest.raises(InvalidArgumentException, match="directory"):
        sandbox.files.write("/home/user", "x")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.list("file")
    with pytest.raises((InvalidArgumentException, SandboxException)):
        sandbox.files.write("file/below", "x")


def test_an_unknown_user_is_refused(sandbox: Sandbox) -> None:
    for call in (
        lambda: sandbox.files.read("/etc/hostname", user="nobody-of-that-name"),
        lambda: sandbox.files.write("x", "x", user="nobody-of-that-name"),
        lambda: sandbox.files.list("/", user="nobody-of-that-name"),
    ):
        with pytest.raises(AuthenticationException):
            call()


def test_metadata_is_kept_with_the_file(sandbox: Sandbox) -> None:
    info = sandbox.files.write("note", "x", metadata={"source": "unit test", "Stage": "1"})
    assert info.metadata == {"source": "unit test", "stage": "1"}
    assert sandbox.files.get_info("note").metadata == {"source": "unit test", "stage": "1"}
    (entry,) = [entry for entry in sandbox.files.list("/home/user") if entry.name == "note"]
    assert entry.metadata == {"source": "unit test", "stage": "1"}
    assert sandbox.files.rename("note", "renamed").metadata == {"source": "unit test", "stage": "1"}


def test_metadata_goes_where_its_file_goes_and_ends_with_it(sandbox: Sandbox) -> None:
    def of(path: str) -> dict[str, str] | None:
        return sandbox.files.get_info(path).metadata

    sandbox.files.write("note", "x", metadata={"a": "1"})
    sandbox.files.write("other", "y", metadata={"b": "2"})
    sandbox.commands.run("echo more >> note; mkdir -p deep/er; mv note deep/er/")
    assert of("deep/er/note") == {"a": "1"}
    sandbox.commands.run("mv deep moved; mv other moved/er/note")
    assert of("moved/er/note") == {"b": "2"}, "that of the file which took its place"
    sandbox.files.write("moved/er/note", "z", metadata={"c": "3"})
    assert of("moved/er/note") == {"c": "3"}, "replaced as a whole"
    sandbox.files.write("moved/er/note", "z")
    assert not of("moved/er/note")
    sandbox.files.write("linked", "z", metadata={"d": "4"})
    sandbox.commands.run("ln linked second")
    assert of("second") == {"d": "4"}
    sandbox.files.write("linked", "z")
    assert not of("second")
    for number in range(20):  # whose numbers the next files may get
        sandbox.files.write(f"gone/{number}", "x", metadata={"of": "the dead"})
    sandbox.commands.run("rm -r gone; mkdir gone; for n in $(seq 20); do echo > gone/$n; done")
    assert not any(entry.metadata for entry in sandbox.files.list("gone"))


def test_metadata_stays_when_a_file_moves_to_another_file_system(sandbox: Sandbox) -> None:
    sandbox.files.write("note", "x", metadata={"a": "1"})
    assert sandbox.files.rename("note", "/dev/shm/note").metadata == {"a": "1"}
    assert sandbox.files.rename("/dev/shm/note", "back").metadata == {"a": "1"}


def test_metadata_is_kept_for_streamed_files_and_each_of_many(sandbox: Sandbox) -> None:
    sandbox.files.write("streamed", io.BytesIO(b"x"), metadata={"a": "b"})
    assert sandbox.files.get_info("streamed").metadata == {"a": "b"}
    written = sandbox.files.write_files([{"path": "m1", "data": "1"}, {"path": "m2", "data": "2"}], metadata={"c": "d"})
    assert [info.metadata for info in written] == [{"c": "d"}, {"c": "d"}]


def test_uploads_at_the_same_time_do_not_mix(sandbox: Sandbox) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def one(n: int) -> bool:
        data = bytes([n]) * (256 * 1024)
        sandbox.files.write(f"par/{n}", data)
        return bytes(sandbox.files.read(f"par/{n}", format="bytes")) == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(40)))
