"""Directory watching through the published Python SDK, synchronous flavour (a watcher that is asked for its events)."""

from __future__ import annotations

import pytest
from e2b import FileNotFoundException, FilesystemEvent, FilesystemEventType, Sandbox, SandboxException
from sdk_support import eventually


def _collect(handle, events: list[FilesystemEvent]) -> set[tuple[str, FilesystemEventType]]:
    events += handle.get_new_events()
    return {(event.name, event.type) for event in events}


def test_a_watcher_tells_what_happened_since_it_was_asked_last(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("w")
    handle = sandbox.files.watch_dir("w")
    assert handle.get_new_events() == []
    events: list[FilesystemEvent] = []
    sandbox.files.write("w/a", "1")
    eventually(lambda: ("a", FilesystemEventType.CREATE) in _collect(handle, events), what="create of a")
    eventually(lambda: ("a", FilesystemEventType.WRITE) in _collect(handle, events), what="write of a")
    later: list[FilesystemEvent] = []
    sandbox.files.remove("w/a")
    eventually(lambda: ("a", FilesystemEventType.REMOVE) in _collect(handle, later), what="remove of a")
    assert ("a", FilesystemEventType.CREATE) not in {(e.name, e.type) for e in later}
    handle.stop()


def test_a_recursive_watcher_sees_below(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("w/sub")
    handle = sandbox.files.watch_dir("w", recursive=True)
    sandbox.files.write("w/sub/inner", "x")
    events: list[FilesystemEvent] = []
    eventually(lambda: ("sub/inner", FilesystemEventType.CREATE) in _collect(handle, events), what="sub/inner")
    handle.stop()


def test_a_watcher_can_carry_the_entry(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("w")
    handle = sandbox.files.watch_dir("w", include_entry=True)
    sandbox.files.write("w/note", "12345")
    events: list[FilesystemEvent] = []

    def sized() -> bool:
        events.extend(handle.get_new_events())
        return any(e.entry is not None and e.entry.size == 5 and e.entry.owner == "user" for e in events)

    eventually(sized, what="an event that carries the entry")
    handle.stop()


def test_a_stopped_watcher_cannot_be_asked(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("w")
    handle = sandbox.files.watch_dir("w")
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()


def test_watching_what_is_not_a_directory_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(FileNotFoundException):
        sandbox.files.watch_dir("no-such")
    sandbox.files.write("file", "x")
    with pytest.raises(SandboxException, match="directory"):
        sandbox.files.watch_dir("file")
