"""filesystem.Filesystem's watching: WatchDir (a stream) and CreateWatcher, GetWatcherEvents, RemoveWatcher (polled).

    kernel ──inotify──► Hub ──RawEvent──► Tree (one per watch) ──FilesystemEvent──► its mailbox ──► stream or poll
                        one descriptor    paths, recursion,        bounded
                        for the guest     rename pairs

One inotify instance serves all watches: instances are scarce (128 per user of the *host* by default, all sandboxes
together). It exists only while something is watched.

Events mean what Go's fsnotify makes of inotify, since that is what E2B sends: a rename is RENAME of the old name and
CREATE of the new one. Names are relative to the watched directory; `.` is that directory itself. Uploads through
`/files` appear as CREATE (when new), CHMOD, WRITE of their target; see `uploads.py`.

Recursion has no gap: a new directory is watched first and listed after that; what the listing finds is announced once.
An event that was lost (kernel queue or mailbox full) ends the watch with an error; it is never silent.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from atoll.guest import inotify
from atoll.guest.copying import TEMPORARY_MOVE
from atoll.guest.directories import BATCH
from atoll.guest.entries import Names
from atoll.guest.filesystem import entry_at, failure
from atoll.guest.handles import is_network_filesystem, open_directory
from atoll.guest.inotify import Inotify, RawEvent
from atoll.guest.paths import shown
from atoll.guest.process_service import keepalive_interval
from atoll.guest.state import GuestState
from atoll.guest.uploads import TEMPORARY, TEMPORARY_NEW
from atoll.wire.connect import Call, Code, ConnectError, Service
from atoll.wire.filesystem import (
    CreateWatcherRequest,
    CreateWatcherResponse,
    EntryInfo,
    EventType,
    FilesystemEvent,
    GetWatcherEventsRequest,
    GetWatcherEventsResponse,
    RemoveWatcherRequest,
    RemoveWatcherResponse,
    WatchDirRequest,
    WatchDirResponse,
    WatchKeepAlive,
    WatchStart,
)

MAX_WAITING = 16_384
"""Events of one watch that wait to be taken; the kernel's own queue has the same default size."""
MAX_WATCHES = 256
"""Watches of one sandbox, streams and polled ones together."""
POLL_EXPIRY_S = 3600.0
"""A polled watch that nobody has asked for so long is given up when room is needed."""
_ROUNDS = 16
"""Reads of the kernel's queue in one turn of the event loop."""

_KINDS = (
    (inotify.CREATE | inotify.MOVED_TO, EventType.EVENT_TYPE_CREATE),
    (inotify.MOVED_FROM | inotify.MOVE_SELF, EventType.EVENT_TYPE_RENAME),
    (inotify.ATTRIB, EventType.EVENT_TYPE_CHMOD),
    (inotify.MODIFY, EventType.EVENT_TYPE_WRITE),
    (inotify.DELETE | inotify.DELETE_SELF, EventType.EVENT_TYPE_REMOVE),
)
_GONE = (EventType.EVENT_TYPE_REMOVE, EventType.EVENT_TYPE_RENAME)


@dataclass(slots=True, eq=False)
class Tree:
    """One watch: a directory, perhaps with all below it. Fed by the hub, emptied by a stream or by polls."""

    root: str
    recursive: bool
    include_entry: bool
    names: Names
    hub: Hub
    events: list[FilesystemEvent] = field(default_factory=list)
    error: ConnectError | None = None
    polled_at: float = 0.0
    watches: dict[str, int] = field(default_factory=dict)
    """Relative directory ("" for the root) → watch number."""
    _announced: set[str] = field(default_factory=set)
    """Found by listing a new directory; the kernel may still report their creation."""
    _moving: dict[int, str] = field(default_factory=dict)
    """Directories that have left their name and not yet arrived at another, by cookie."""
    _uploads: dict[int, bool] = field(default_factory=dict)
    """Uploads about to take their name, by cookie: whether the name is new."""
    _replaced: set[str] = field(default_factory=set)
    """Files that an upload has swapped with a new one; the old one's leaving is no event of its own."""
    _waiter: asyncio.Future[None] | None = None

    # -- taking events ----------------------------------------------------------------------------------------------

    def take(self) -> list[FilesystemEvent]:
        """All events that wait. Raises ConnectError when the watch has failed and nothing is left to take."""
        if not self.events and self.error is not None:
            raise self.error
        taken, self.events = self.events, []
        return taken

    async def wait(self, timeout_s: float) -> list[FilesystemEvent]:
        """At least one event, or [] after `timeout_s` without any. Raises ConnectError as `take`."""
        if not self.events and self.error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._waiter
            except TimeoutError:
                return []
            finally:
                self._waiter = None
        return self.take()

    def fail(self, error: ConnectError) -> None:
        """The last thing that the taker gets, after the events so far."""
        if self.error is None:
            self.error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- being fed --------------------------------------------------------------------------------------------------

    def feed(self, relative: str, raw: RawEvent) -> None:
        """One kernel event of the watched directory `relative`."""
        if self.error is not None:
            return
        if raw.name.startswith((TEMPORARY, TEMPORARY_MOVE)):
            if raw.mask & inotify.MOVED_FROM and raw.name.startswith(TEMPORARY):
                self._uploads[raw.cookie] = raw.name.startswith(TEMPORARY_NEW)
            return
        path = _join(relative, raw.name)
        if not raw.name and relative:
            return  # the directory above reports it by name
        if raw.mask & inotify.MOVED_TO and raw.cookie in self._uploads:
            self._uploaded(path, self._uploads.pop(raw.cookie))
            return
        if raw.mask & inotify.MOVED_FROM and path in self._replaced:
            self._replaced.discard(path)
            return
        for bits, kind in _KINDS:
            if raw.mask & bits:
                self._changed(path, kind, raw)

    def settle(self) -> None:
        """The kernel's queue has been read empty: what waited for a second half of itself will not get it."""
        self._announced.clear()
        self._uploads.clear()
        self._replaced.clear()
        for path in self._moving.values():
            self._forget_below(path)
        self._moving.clear()

    def _changed(self, path: str, kind: EventType, raw: RawEvent) -> None:
        if kind is EventType.EVENT_TYPE_CREATE and path in self._announced:
            self._announced.discard(path)
        else:
            self._announced.discard(path)
            self._emit(path, kind)
        if raw.mask & inotify.ISDIR and self.recursive:
            if raw.mask & inotify.MOVED_FROM:
                self._moving[raw.cookie] = path
            elif raw.mask & inotify.MOVED_TO and raw.cookie in self._moving:
                self._rename_below(self._moving.pop(raw.cookie), path)
            elif raw.mask & (inotify.CREATE | inotify.MOVED_TO):
                self._enter(path)

    def _uploaded(self, path: str, is_new: bool) -> None:
        if is_new:
            self._emit(path, EventType.EVENT_TYPE_CREATE)
        else:
            self._replaced.add(path)
        self._emit(path, EventType.EVENT_TYPE_CHMOD)
        self._emit(path, EventType.EVENT_TYPE_WRITE)

    def _emit(self, path: str, kind: EventType) -> None:
        if len(self.events) >= MAX_WAITING:
            self.fail(_overflow(f"more than {MAX_WAITING} events waited to be taken"))
            return
        entry = self._entry(path) if self.include_entry and kind not in _GONE else None
        self.events.append(FilesystemEvent(name=shown(path) or ".", type=kind, entry=entry))
        self._wake()

    def _entry(self, path: str) -> EntryInfo | None:
        try:
            return entry_at(self._absolute(path), self.names)
        except ConnectError:
            return None

    def _absolute(self, relative: str) -> str:
        return f"{self.root.rstrip('/')}/{relative}" if relative else self.root

    # -- directories ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Watches the root and, if recursive, all below it. Raises ConnectError."""
        waiting = [""]
        count = 0
        while waiting:
            relative = waiting.pop()
            waiting += self._watch(relative, announce=False)
            count += 1
            if count % BATCH == 0:
                await asyncio.sleep(0)

    def _enter(self, relative: str) -> None:
        """A directory has appeared: watches it and all below, and announces what it already holds."""
        waiting = [relative]
        while waiting:
            try:
                waiting += self._watch(waiting.pop(), announce=True)
            except ConnectError as error:
                self.fail(error)
                return

    def _watch(self, relative: str, *, announce: bool) -> list[str]:
        """Watches one directory; its subdirectories if they are to be watched too. Raises ConnectError."""
        path = self._absolute(relative)
        try:
            fd = open_directory(path, follow=not relative)
        except OSError as error:
            if not relative:
                raise failure(error, f"cannot watch '{shown(path)}'") from error
            return []  # gone again, or not a directory any more: the kernel has told or will tell
        try:
            known = self.watches.get(relative)
            watch = self.hub.watch(fd, self, relative)
            return self._list(fd, relative, announce and watch != known) if self.recursive else []
        except OSError as error:
            raise _cannot_watch(error, path) from error
        finally:
            os.close(fd)

    def _list(self, fd: int, relative: str, announce: bool) -> list[str]:
        inner: list[str] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.name.startswith((TEMPORARY, TEMPORARY_MOVE)):
                    continue
                path = _join(relative, entry.name)
                if announce and path not in self._announced:
                    self._announced.add(path)
                    self._emit(path, EventType.EVENT_TYPE_CREATE)
                if entry.is_dir(follow_symlinks=False):
                    inner.append(path)
        return inner

    def _below(self, relative: str) -> list[str]:
        return [path for path in self.watches if path == relative or path.startswith(relative + "/")]

    def _rename_below(self, old: str, new: str) -> None:
        for path in self._below(old):
            watch = self.watches.pop(path)
            self.watches[new + path[len(old) :]] = watch
            self.hub.renamed(watch, self, path, new + path[len(old) :])

    def _forget_below(self, relative: str) -> None:
        for path in self._below(relative):
            self.hub.unwatch(self.watches.pop(path), self, path)


class Hub:
    """The guest's one inotify instance and who listens to which watch on it."""

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._trees: set[Tree] = set()
        self._listeners: dict[int, list[tuple[Tree, str]]] = {}

    def __len__(self) -> int:
        return len(self._trees)

    @property
    def trees(self) -> frozenset[Tree]:
        return frozenset(self._trees)

    async def open(self, tree: Tree) -> None:
        """Starts a tree. Raises ConnectError, and nothing of it is left."""
        if len(self._trees) >= MAX_WATCHES:
            raise ConnectError(Code.RESOURCE_EXHAUSTED, f"more than {MAX_WATCHES} watches in this sandbox; stop some")
        if self._inotify is None:
            try:
                self._inotify = Inotify()
            except OSError as error:
                raise _cannot_watch(error, tree.root) from error
            asyncio.get_running_loop().add_reader(self._inotify.fd, self.poll)
        self._trees.add(tree)
        # What has happened so far is none of the new tree's business.
        self.poll()
        try:
            await tree.start()
        except BaseException:
            self.close(tree)
            raise

    def close(self, tree: Tree) -> None:
        """Ends a tree; the last one takes the inotify instance with it. Closing twice is no error."""
        if tree not in self._trees:
            return
        self._trees.discard(tree)
        if self._trees:
            for path, watch in list(tree.watches.items()):
                self.unwatch(watch, tree, path)
        elif self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fd)
            self._inotify.close()
            self._inotify = None
            self._listeners.clear()
        tree.watches.clear()

    def watch(self, directory: int, tree: Tree, relative: str) -> int:
        """Watches an open directory for a tree; the watch's number. Raises OSError."""
        if self._inotify is None:
            raise OSError(errno.EBADF, "the watch has ended")
        watch = self._inotify.add(directory)
        listeners = self._listeners.setdefault(watch, [])
        if (tree, relative) not in listeners:
            listeners.append((tree, relative))
        tree.watches[relative] = watch
        return watch

    def unwatch(self, watch: int, tree: Tree, relative: str) -> None:
        listeners = self._listeners.get(watch, [])
        if (tree, relative) in listeners:
            listeners.remove((tree, relative))
        if not listeners and self._listeners.pop(watch, None) is not None and self._inotify is not None:
            self._inotify.remove(watch)

    def renamed(self, watch: int, tree: Tree, old: str, new: str) -> None:
        listeners = self._listeners.get(watch, [])
        listeners[:] = [(tree, new) if item == (tree, old) else item for item in listeners]

    def poll(self) -> None:
        """Reads what the kernel has, now: called when the descriptor is readable and before a poll is answered."""
        for _ in range(_ROUNDS):
            if self._inotify is None:
                return
            events = self._inotify.read()
            if not events:
                for tree in self._trees:
                    tree.settle()
                return
            for raw in events:
                self._dispatch(raw)

    def _dispatch(self, raw: RawEvent) -> None:
        if raw.mask & inotify.Q_OVERFLOW:
            for tree in self._trees:
                tree.fail(_overflow("the kernel's queue of file events was full"))
        elif raw.mask & inotify.IGNORED:
            for tree, relative in self._listeners.pop(raw.watch, ()):
                if tree.watches.get(relative) == raw.watch:
                    del tree.watches[relative]
        else:
            for tree, relative in tuple(self._listeners.get(raw.watch, ())):
                tree.feed(relative, raw)


class Watch:
    """The service's methods."""

    def __init__(self, state: GuestState) -> None:
        self._state = state
        self._hub = Hub()
        self._polled: dict[str, Tree] = {}

    def register(self, service: Service) -> None:
        service.server_stream("WatchDir", WatchDirRequest, self.watch_dir)
        service.unary("CreateWatcher", CreateWatcherRequest, self.create_watcher)
        service.unary("GetWatcherEvents", GetWatcherEventsRequest, self.get_watcher_events)
        service.unary("RemoveWatcher", RemoveWatcherRequest, self.remove_watcher)

    @property
    def hub(self) -> Hub:
        return self._hub

    async def watch_dir(self, request: WatchDirRequest, call: Call) -> AsyncIterator[WatchDirResponse]:
        interval = keepalive_interval(call.headers)
        tree = await self._open(request, call)
        try:
            yield WatchDirResponse(start=WatchStart())
            while True:
                events = await tree.wait(interval)
                if not events:
                    yield WatchDirResponse(keepalive=WatchKeepAlive())
                for event in events:
                    yield WatchDirResponse(filesystem=event)
        finally:
            self._hub.close(tree)

    async def create_watcher(self, request: CreateWatcherRequest, call: Call) -> CreateWatcherResponse:
        self._expire()
        tree = await self._open(request, call)
        tree.polled_at = asyncio.get_running_loop().time()
        watcher_id = "w" + secrets.token_hex(10)
        self._polled[watcher_id] = tree
        return CreateWatcherResponse(watcher_id=watcher_id)

    async def get_watcher_events(self, request: GetWatcherEventsRequest, call: Call) -> GetWatcherEventsResponse:
        tree = self._find(request.watcher_id)
        tree.polled_at = asyncio.get_running_loop().time()
        self._hub.poll()
        return GetWatcherEventsResponse(events=tree.take())

    async def remove_watcher(self, request: RemoveWatcherRequest, call: Call) -> RemoveWatcherResponse:
        self._hub.close(self._find(request.watcher_id))
        del self._polled[request.watcher_id]
        return RemoveWatcherResponse()

    def _find(self, watcher_id: str) -> Tree:
        tree = self._polled.get(watcher_id)
        if tree is None:
            raise ConnectError(Code.NOT_FOUND, f"watcher with id {shown(watcher_id[:64])} not found")
        return tree

    def _expire(self) -> None:
        """Makes room: polled watches that nobody asks any more."""
        if len(self._hub) < MAX_WATCHES:
            return
        oldest = asyncio.get_running_loop().time() - POLL_EXPIRY_S
        for watcher_id, tree in list(self._polled.items()):
            if tree.polled_at < oldest:
                self._hub.close(tree)
                del self._polled[watcher_id]

    async def _open(self, request: WatchDirRequest | CreateWatcherRequest, call: Call) -> Tree:
        path = self._state.resolve(request.path, self._state.user_of(call.headers))
        try:
            fd = open_directory(path)
        except NotADirectoryError as error:
            raise ConnectError(Code.INVALID_ARGUMENT, f"path {shown(path)} not a directory") from error
        except FileNotFoundError as error:
            raise ConnectError(Code.NOT_FOUND, f"path {shown(path)} not found") from error
        except OSError as error:
            raise failure(error, f"error opening '{shown(path)}'") from error
        os.close(fd)
        if not request.allow_network_mounts and _is_network(path):
            raise ConnectError(
                Code.INVALID_ARGUMENT,
                f"cannot watch path on network filesystem: {shown(path)} (events may be lost there; "
                "set allow_network_mounts to watch all the same)",
            )
        tree = Tree(path, request.recursive, request.include_entry, self._state.users, self._hub)
        await self._hub.open(tree)
        return tree


def _is_network(path: str) -> bool:
    try:
        return is_network_filesystem(path)
    except OSError:
        return False


def _join(relative: str, name: str) -> str:
    return f"{relative}/{name}" if relative and name else relative or name


def _overflow(why: str) -> ConnectError:
    return ConnectError(Code.INTERNAL, f"watcher error: {why}, events were lost; list the directory and watch it again")


def _cannot_watch(error: OSError, path: str) -> ConnectError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ConnectError(
            Code.INTERNAL,
            "no inotify instance left; raise fs.inotify.max_user_instances on the machine that runs the sandbox",
        )
    if error.errno == errno.ENOSPC:
        return ConnectError(
            Code.INTERNAL,
            f"no inotify watch left for '{shown(path)}'; watch a smaller tree or raise fs.inotify.max_user_watches "
            "on the machine that runs the sandbox",
        )
    return failure(error, f"cannot watch '{shown(path)}'")
