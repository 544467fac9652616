"""Messages of the service `filesystem.Filesystem` (E2B's numbers and names)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated

from atoll.wire.envd.messages import INT64, UINT32, F, Message, Timestamp, message

SERVICE = "filesystem.Filesystem"


class FileType(IntEnum):
    FILE_TYPE_UNSPECIFIED = 0
    FILE_TYPE_FILE = 1
    FILE_TYPE_DIRECTORY = 2
    FILE_TYPE_SYMLINK = 3


class EventType(IntEnum):
    EVENT_TYPE_UNSPECIFIED = 0
    EVENT_TYPE_CREATE = 1
    EVENT_TYPE_WRITE = 2
    EVENT_TYPE_REMOVE = 3
    EVENT_TYPE_RENAME = 4
    EVENT_TYPE_CHMOD = 5


@message
@dataclass(frozen=True, slots=True)
class EntryInfo(Message):
    name: Annotated[str, F(1)] = ""
    type: Annotated[FileType | int, F(2)] = FileType.FILE_TYPE_UNSPECIFIED
    path: Annotated[str, F(3)] = ""
    size: Annotated[int, F(4, INT64)] = 0
    mode: Annotated[int, F(5, UINT32)] = 0
    permissions: Annotated[str, F(6)] = ""
    owner: Annotated[str, F(7)] = ""
    group: Annotated[str, F(8)] = ""
    modified_time: Annotated[Timestamp | None, F(9)] = None
    symlink_target: Annotated[str | None, F(10)] = None
    metadata: Annotated[dict[str, str], F(11)] = field(default_factory=dict)
    is_symlink: Annotated[bool, F(12)] = False
    """The entry itself is a symlink; `type` is then its target's (newest SDKs only)."""


@message
@dataclass(frozen=True, slots=True)
class MoveRequest(Message):
    source: Annotated[str, F(1)] = ""
    destination: Annotated[str, F(2)] = ""


@message
@dataclass(frozen=True, slots=True)
class MoveResponse(Message):
    entry: Annotated[EntryInfo | None, F(1)] = None


@message
@dataclass(frozen=True, slots=True)
class MakeDirRequest(Message):
    path: Annotated[str, F(1)] = ""


@message
@dataclass(frozen=True, slots=True)
class MakeDirResponse(Message):
    entry: Annotated[EntryInfo | None, F(1)] = None


@message
@dataclass(frozen=True, slots=True)
class RemoveRequest(Message):
    path: Annotated[str, F(1)] = ""


@message
@dataclass(frozen=True, slots=True)
class RemoveResponse(Message):
    pass


@message
@dataclass(frozen=True, slots=True)
class StatRequest(Message):
    path: Annotated[str, F(1)] = ""


@message
@dataclass(frozen=True, slots=True)
class StatResponse(Message):
    entry: Annotated[EntryInfo | None, F(1)] = None


@message
@dataclass(frozen=True, slots=True)
class ListDirRequest(Message):
    path: Annotated[str, F(1)] = ""
    depth: Annotated[int, F(2, UINT32)] = 0


@message
@dataclass(frozen=True, slots=True)
class ListDirResponse(Message):
    entries: Annotated[list[EntryInfo], F(1)] = field(default_factory=list)


@message
@dataclass(frozen=True, slots=True)
class FilesystemEvent(Message):
    name: Annotated[str, F(1)] = ""
    type: Annotated[EventType | int, F(2)] = EventType.EVENT_TYPE_UNSPECIFIED
    entry: Annotated[EntryInfo | None, F(3)] = None


@message
@dataclass(frozen=True, slots=True)
class WatchDirRequest(Message):
    path: Annotated[str, F(1)] = ""
    recursive: Annotated[bool, F(2)] = False
    include_entry: Annotated[bool, F(3)] = False
    allow_network_mounts: Annotated[bool, F(4)] = False


@message
@dataclass(frozen=True, slots=True)
class WatchStart(Message):
    pass


@message
@dataclass(frozen=True, slots=True)
class WatchKeepAlive(Message):
    pass


@message
@dataclass(frozen=True, slots=True)
class WatchDirResponse(Message):
    start: Annotated[WatchStart | None, F(1, oneof="event")] = None
    filesystem: Annotated[FilesystemEvent | None, F(2, oneof="event")] = None
    keepalive: Annotated[WatchKeepAlive | None, F(3, oneof="event")] = None


@message
@dataclass(frozen=True, slots=True)
class CreateWatcherRequest(Message):
    path: Annotated[str, F(1)] = ""
    recursive: Annotated[bool, F(2)] = False
    include_entry: Annotated[bool, F(3)] = False
    allow_network_mounts: Annotated[bool, F(4)] = False


@message
@dataclass(frozen=True, slots=True)
class CreateWatcherResponse(Message):
    watcher_id: Annotated[str, F(1)] = ""


@message
@dataclass(frozen=True, slots=True)
class GetWatcherEventsRequest(Message):
    watcher_id: Annotated[str, F(1)] = ""


@message
@dataclass(frozen=True, slots=True)
class GetWatcherEventsResponse(Message):
    events: Annotated[list[FilesystemEvent], F(1)] = field(default_factory=list)


@message
@dataclass(frozen=True, slots=True)
class RemoveWatcherRequest(Message):
    watcher_id: Annotated[str, F(1)] = ""


@message
@dataclass(frozen=True, slots=True)
class RemoveWatcherResponse(Message):
    pass
