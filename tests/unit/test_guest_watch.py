"""Watching directories: what happens is told, once and in order; nothing is lost silently."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from _guest_files_server import async_sandbox, make_state, sandbox, serve, serve_in_thread
from e2b import (
    AsyncSandbox,
    FilesystemEvent,
    FilesystemEventType,
    InvalidArgumentException,
    NotFoundException,
    Sandbox,
    SandboxException,
)

from atoll.guest.watch import hub as watch_hub
from atoll.guest.watch import service as watch_module
from atoll.guest.watch import tree as watch_tree
from atoll.guest.watch.hub import Hub
from atoll.guest.watch.inotify import Q_OVERFLOW, RawEvent
from atoll.guest.watch.service import Watch
from atoll.guest.watch.tree import Tree
from atoll.http1.server import Headers
from atoll.wire.envd.connect import Call, Code, ConnectError
from atoll.wire.envd.filesystem import CreateWatcherRequest, EventType, GetWatcherEventsRequest, WatchDirRequest

CREATE, WRITE = FilesystemEventType.CREATE, FilesystemEventType.WRITE
REMOVE, RENAME, CHMOD = FilesystemEventType.REMOVE, FilesystemEventType.RENAME, FilesystemEventType.CHMOD
NO_CALL = Call(Headers(), None)


@pytest.fixture
def sbx(tmp_path: Path) -> Iterator[Sandbox]:
    with serve_in_thread(make_state(str(tmp_path))) as url:
        yield sandbox(url)


@pytest.fixture
async def tree(tmp_path: Path) -> AsyncIterator[Tree]:
    """A recursive watch on the temporary directory, without a server."""
    hub = Hub()
    watched = Tree(str(tmp_path), True, False, make_state(str(tmp_path)).users, hub)
    await hub.open(watched)
    yield watched
    hub.close(watched)


def seen(events: list[FilesystemEvent]) -> list[tuple[str, FilesystemEventType]]:
    return [(event.name, event.type) for event in events]


def taken(tree: Tree) -> list[tuple[str, str]]:
    tree.hub.poll()
    return [(event.name, EventType(event.type).name.removeprefix("EVENT_TYPE_")) for event in tree.take()]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_program_that_works_in_the_directory_is_seen(sbx: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    handle = sbx.files.watch_dir(".")
    (tmp_path / "new").write_text("x")
    (tmp_path / "new").chmod(0o600)
    (tmp_path / "new").rename(tmp_path / "newer")
    (tmp_path / "newer").unlink()
    with open(tmp_path / "old", "a") as file:
        file.write("y")
    assert seen(handle.get_new_events()) == [
        ("new", CREATE),
        ("new", WRITE),
        ("new", CHMOD),
        ("new", RENAME),
        ("newer", CREATE),
        ("newer", REMOVE),
        ("old", WRITE),
    ]
    assert handle.get_new_events() == []
    handle.stop()


def test_an_upload_is_seen_as_the_write_of_its_target(sbx: Sandbox) -> None:
    handle = sbx.files.watch_dir(".")
    sbx.files.write("file", "1")
    assert seen(handle.get_new_events()) == [("file", CREATE), ("file", CHMOD), ("file", WRITE)]
    sbx.files.write("file", "2")
    assert seen(handle.get_new_events()) == [("file", CHMOD), ("file", WRITE)]
    sbx.files.write("file", "3")
    sbx.files.rename("file", "other")
    assert seen(handle.get_new_events()) == [("file", CHMOD), ("file", WRITE), ("file", RENAME), ("other", CREATE)]
    handle.stop()


def test_only_a_recursive_watch_sees_below(sbx: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    flat, deep = sbx.files.watch_dir("."), sbx.files.watch_dir(".", recursive=True)
    (tmp_path / "d" / "e" / "f").write_text("x")
    (tmp_path / "d" / "g").mkdir()
    assert flat.get_new_events() == []
    assert seen(deep.get_new_events()) == [("d/e/f", CREATE), ("d/e/f", WRITE), ("d/g", CREATE)]
    flat.stop()
    deep.stop()


def test_entries_come_with_the_events_if_asked_for(sbx: Sandbox, tmp_path: Path) -> None:
    handle = sbx.files.watch_dir(".", include_entry=True)
    (tmp_path / "f").write_text("123")
    (tmp_path / "f").rename(tmp_path / "g")
    events = handle.get_new_events()
    assert seen(events) == [("f", CREATE), ("f", WRITE), ("f", RENAME), ("g", CREATE)]
    by_name = {event.name: event.entry for event in events if event.type is CREATE}
    assert by_name["g"] is not None
    assert (by_name["g"].path, by_name["g"].size) == (str(tmp_path / "g"), 3)
    assert events[2].entry is None
    (tmp_path / "g").unlink()
    assert [event.entry for event in handle.get_new_events()] == [None]
    handle.stop()


def test_what_cannot_be_watched_is_refused(sbx: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFoundException, match="not found"):
        sbx.files.watch_dir("missing")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        sbx.files.watch_dir("file")
    with pytest.raises(SandboxException):
        sbx.files.watch_dir("/proc/self")


def test_a_network_file_system_is_watched_only_on_request(
    sbx: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "is_network_filesystem", lambda path: True)
    with pytest.raises(InvalidArgumentException, match="network filesystem"):
        sbx.files.watch_dir(".")
    handle = sbx.files.watch_dir(".", allow_network_mounts=True)
    (tmp_path / "x").touch()
    assert ("x", CREATE) in seen(handle.get_new_events())
    handle.stop()


def test_a_stopped_watcher_is_unknown(sbx: Sandbox) -> None:
    handle = sbx.files.watch_dir(".")
    handle.stop()
    with pytest.raises(NotFoundException, match="watcher with id"):
        handle.stop()


async def test_the_stream_tells_events_as_they_happen_and_ends_with_its_client(tmp_path: Path) -> None:
    async with serve(make_state(str(tmp_path))) as url:
        sbx: AsyncSandbox = async_sandbox(url)
        got: asyncio.Queue[FilesystemEvent] = asyncio.Queue()
        handle = await sbx.files.watch_dir(".", on_event=got.put_nowait, recursive=True, include_entry=True)
        await sbx.files.make_dir("dir")
        await sbx.files.write("dir/file", "x")
        events: list[FilesystemEvent] = []
        while ("dir/file", CREATE) not in seen(events):
            events.append(await asyncio.wait_for(got.get(), 10))
        assert ("dir", CREATE) in seen(events)
        entry = events[-1].entry
        assert entry is not None
        assert (entry.path, entry.size) == (str(tmp_path / "dir" / "file"), 1)
        assert _is_watching()
        await handle.stop()
        for _ in range(500):
            if not _is_watching():
                break
            await asyncio.sleep(0.01)
        assert not _is_watching()


def _is_watching() -> bool:
    return any("inotify" in _target(fd) for fd in os.listdir("/proc/self/fd"))


def _target(fd: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}")
    return ""


async def test_a_quiet_stream_shows_signs_of_life(tmp_path: Path) -> None:
    watch = Watch(make_state(str(tmp_path)))
    call = Call(Headers([("keepalive-ping-interval", "1")]), None)
    stream = watch.watch_dir(WatchDirRequest(path="."), call)
    first, second = await anext(stream), await asyncio.wait_for(anext(stream), 10)
    assert first.start is not None
    assert second.keepalive is not None
    assert len(watch.hub) == 1
    await stream.aclose()  # type: ignore[attr-defined]
    assert len(watch.hub) == 0


async def test_a_new_subtree_is_announced_without_gap_and_without_doubles(tree: Tree, tmp_path: Path) -> None:
    # All of it exists before the first event is read: only the listing can know what is inside.
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "early").write_text("x")
    assert taken(tree) == [("a", "CREATE"), ("a/b", "CREATE"), ("a/b/early", "CREATE")]
    (tmp_path / "a" / "b" / "late").touch()
    assert taken(tree)[0] == ("a/b/late", "CREATE")
    # Made again after it was announced and removed: a second CREATE, not a swallowed one.
    (tmp_path / "a" / "b" / "early").unlink()
    (tmp_path / "a" / "b" / "early").touch()
    assert taken(tree)[:2] == [("a/b/early", "REMOVE"), ("a/b/early", "CREATE")]


async def test_every_file_of_a_tree_that_grows_quickly_is_announced_once(tree: Tree, tmp_path: Path) -> None:
    created: list[str] = []

    async def grow() -> None:
        for number in range(60):
            directory = tmp_path / f"d{number}" / "e"
            directory.mkdir(parents=True)
            for name in ("x", "y"):
                (directory / name).touch()
                created.append(f"d{number}/e/{name}")
            if number % 3 == 0:
                await asyncio.sleep(0)

    await grow()
    names = [name for name, kind in taken(tree) if kind == "CREATE"]
    assert len(names) == len(set(names))
    assert set(created) <= set(names)


async def test_a_renamed_directory_is_followed_under_its_new_name(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    taken(tree)
    (tmp_path / "a").rename(tmp_path / "z")
    assert taken(tree) == [("a", "RENAME"), ("z", "CREATE")]
    (tmp_path / "z" / "b" / "f").touch()
    assert taken(tree)[0] == ("z/b/f", "CREATE")


async def test_a_directory_that_left_the_tree_is_forgotten(tree: Tree, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path.parent / f"{tmp_path.name}-outside"
    (inside / "deep").mkdir(parents=True)
    taken(tree)
    inside.rename(outside)
    assert taken(tree) == [("in", "RENAME")]
    (outside / "deep" / "f").touch()
    assert taken(tree) == []
    outside.rename(tmp_path / "back")
    assert [event for event in taken(tree) if event[1] == "CREATE"] == [
        ("back", "CREATE"),
        ("back/deep", "CREATE"),
        ("back/deep/f", "CREATE"),
    ]


async def test_the_end_of_the_watched_directory_itself_is_told(tmp_path: Path) -> None:
    hub = Hub()
    root = tmp_path / "root"
    root.mkdir()
    watched = Tree(str(root), False, False, make_state(str(tmp_path)).users, hub)
    await hub.open(watched)
    root.rmdir()
    assert (".", "REMOVE") in taken(watched)
    hub.close(watched)


async def test_two_watches_on_one_directory_do_not_disturb_each_other(tree: Tree, tmp_path: Path) -> None:
    other = Tree(str(tmp_path), False, False, tree.names, tree.hub)
    (tmp_path / "before").touch()
    await tree.hub.open(other)
    (tmp_path / "after").touch()
    assert ("before", "CREATE") not in taken(other)
    tree.hub.close(other)
    (tmp_path / "last").touch()
    names = [name for name, kind in taken(tree) if kind == "CREATE"]
    assert names == ["before", "after", "last"]


async def test_a_full_kernel_queue_ends_the_watch_with_an_error(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "seen").touch()
    tree.hub.poll()
    tree.hub._dispatch(RawEvent(-1, Q_OVERFLOW, 0, ""))
    assert tree.take()
    with pytest.raises(ConnectError, match="events were lost") as caught:
        tree.take()
    assert caught.value.code is Code.INTERNAL
    with pytest.raises(ConnectError):
        await tree.wait(1)


async def test_a_client_that_never_takes_its_events_costs_bounded_memory(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_tree, "MAX_WAITING", 10)
    for number in range(30):
        (tmp_path / str(number)).touch()
    tree.hub.poll()
    assert len(tree.events) == 10
    assert len(tree.take()) == 10
    with pytest.raises(ConnectError, match="events were lost"):
        tree.take()


async def test_watches_are_limited_and_forgotten_ones_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_hub, "MAX_WATCHES", 3)
    watch = Watch(make_state(str(tmp_path)))
    ids = [(await watch.create_watcher(CreateWatcherRequest(path="."), NO_CALL)).watcher_id for _ in range(3)]
    with pytest.raises(ConnectError, match="more than 3 watches"):
        await watch.create_watcher(CreateWatcherRequest(path="."), NO_CALL)
    monkeypatch.setattr(watch_module, "POLL_EXPIRY_S", -1.0)
    await watch.create_watcher(CreateWatcherRequest(path="."), NO_CALL)
    with pytest.raises(ConnectError, match="not found"):
        await watch.get_watcher_events(GetWatcherEventsRequest(watcher_id=ids[0]), NO_CALL)
    for tree in watch.hub.trees:
        watch.hub.close(tree)


async def test_a_watch_that_fails_to_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    hub = Hub()
    before = descriptors()
    real = Hub.watch

    def run_out(self: Hub, directory: int, tree: Tree, relative: str) -> int:
        if relative == "a/b":
            raise OSError(28, "No space left on device")
        return real(self, directory, tree, relative)

    monkeypatch.setattr(Hub, "watch", run_out)
    with pytest.raises(ConnectError, match="max_user_watches"):
        await hub.open(Tree(str(tmp_path), True, False, make_state(str(tmp_path)).users, hub))
    assert len(hub) == 0
    assert descriptors() == before
