"""Symbolic links as the published SDK shows them: what they are, where they lead, and that they are moved as links.

The protocol gives a link the type of what it leads to and marks it with `is_symlink`; the newest Python SDK shows the
mark as FileType.SYMLINK, older ones and the JavaScript SDK show the type (tests/integration/js/files.test.mjs).
"""

from __future__ import annotations

from e2b import FilesystemEventType, FileType, Sandbox
from e2b.sandbox.filesystem.filesystem import EntryInfo
from sdk_support import eventually

HOME = "/home/user"
MAKE = """
mkdir -p dir/sub && echo text > dir/file && chmod 640 dir/file && cd dir &&
ln -s file to-file && ln -s to-file to-link && ln -s sub to-dir && ln -s missing broken && ln -s loop loop
"""
LEADS = {
    "to-file": f"{HOME}/dir/file",
    "to-link": f"{HOME}/dir/file",
    "to-dir": f"{HOME}/dir/sub",
    "broken": "missing",
    "loop": "loop",
}


def links(entries: list[EntryInfo]) -> dict[str, str | None]:
    return {entry.name: entry.symlink_target for entry in entries if entry.type is FileType.SYMLINK}


def test_a_link_is_shown_as_a_link_with_what_it_leads_to(sandbox: Sandbox) -> None:
    sandbox.commands.run(MAKE)
    sandbox.files.write("dir/sub/inner", "x")
    listed = sandbox.files.list("dir", depth=5)
    assert links(listed) == LEADS
    assert {entry.path for entry in listed} == {f"{HOME}/dir/{name}" for name in [*LEADS, "file", "sub", "sub/inner"]}
    assert {name: sandbox.files.get_info(f"dir/{name}").symlink_target for name in LEADS} == LEADS
    info = sandbox.files.get_info("dir/to-file")
    assert (info.name, info.path, info.size) == ("to-file", f"{HOME}/dir/to-file", len("file"))
    assert (info.mode, info.permissions) == (0o640, "Lrwxrwxrwx")
    plain = sandbox.files.get_info("dir/file")
    assert (plain.type, plain.symlink_target) == (FileType.FILE, None)


def test_a_link_to_a_directory_is_listed_below_its_own_name(sandbox: Sandbox) -> None:
    sandbox.commands.run(MAKE)
    sandbox.files.write("dir/sub/inner", "x")
    assert [entry.path for entry in sandbox.files.list("dir/to-dir")] == [f"{HOME}/dir/to-dir/inner"]
    assert sandbox.files.exists("dir/to-dir/inner")


def test_rename_and_remove_take_the_link_and_not_what_it_leads_to(sandbox: Sandbox) -> None:
    sandbox.commands.run(MAKE)
    assert sandbox.files.rename("dir/to-file", "dir/renamed").symlink_target == f"{HOME}/dir/file"
    assert sandbox.files.rename("dir/broken", "/dev/shm/broken").symlink_target == "missing"  # another file system
    sandbox.files.remove("dir/renamed")
    sandbox.files.remove("dir/to-dir")
    sandbox.files.remove("dir/loop")
    assert links(sandbox.files.list("dir")) == {"to-link": "to-file"}  # it leads to nothing any more
    assert sandbox.files.read("dir/file") == "text\n"
    assert sandbox.files.exists("dir/sub")


def test_events_of_a_link_have_the_link(sandbox: Sandbox) -> None:
    sandbox.commands.run("mkdir -p dir && echo text > file")
    watch = sandbox.files.watch_dir("dir", include_entry=True)
    sandbox.commands.run("ln -s ../file dir/link")
    seen = eventually(watch.get_new_events, what="the event of a new link")
    entry = seen[0].entry
    assert (seen[0].name, seen[0].type) == ("link", FilesystemEventType.CREATE)
    assert entry is not None
    assert (entry.type, entry.symlink_target) == (FileType.SYMLINK, f"{HOME}/file")
    sandbox.files.remove("dir/link")
    gone = eventually(watch.get_new_events, what="the event of its end")
    assert [(event.name, event.type) for event in gone] == [("link", FilesystemEventType.REMOVE)]
    watch.stop()
