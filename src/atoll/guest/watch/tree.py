"""One watch of the file system: the kernel's events of its directories become those that its client asked for.

Recursion has no gap: a new directory is watched first and listed after that; what the listing finds is announced once.
Fed by the hub (`watch_hub`), emptied by a stream or by polls (`watch`). What to make of events stands in `watch`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass, field
from typing import Protocol

from atoll.guest.files.copying import TEMPORARY_MOVE
from atoll.guest.files.directories import BATCH
from atoll.guest.files.entries import Names
from atoll.guest.files.metadata import Kept
from atoll.guest.files.paths import shown
from atoll.guest.files.safe_open import open_directory
from atoll.guest.files.service import entry_at, failure
from atoll.guest.files.uploads import TEMPORARY, TEMPORARY_NEW
from atoll.guest.watch import inotify
from atoll.guest.watch.inotify import RawEvent
from atoll.wire.envd.connect import Code, ConnectError
from atoll.wire.envd.filesystem import EntryInfo, EventType, FilesystemEvent

MAX_WAITING = 16_384
"""Events of one watch that wait to be taken; the kernel's own queue has the same default size."""

_KINDS = (
    (inotify.CREATE | inotify.MOVED_TO, EventType.EVENT_TYPE_CREATE),
    (inotify.MOVED_FROM | inotify.MOVE_SELF, EventType.EVENT_TYPE_RENAME),
    (inotify.ATTRIB, EventType.EVENT_TYPE_CHMOD),
    (inotify.MODIFY, EventType.EVENT_TYPE_WRITE),
    (inotify.DELETE | inotify.DELETE_SELF, EventType.EVENT_TYPE_REMOVE),
)
_GONE = (EventType.EVENT_TYPE_REMOVE, EventType.EVENT_TYPE_RENAME)


class Registry(Protocol):
    """What a tree needs of the hub."""

    def watch(self, directory: int, tree: Tree, relative: str) -> int: ...
    def unwatch(self, watch: int, tree: Tree, relative: str) -> None: ...
    def renamed(self, watch: int, tree: Tree, old: str, new: str) -> None: ...


@dataclass(slots=True, eq=False)
class Tree:
    """One watch: a directory, perhaps with all below it. Fed by the hub, emptied by a stream or by polls."""

    root: str
    recursive: bool
    include_entry: bool
    names: Names
    hub: Registry
    kept: Kept = field(default_factory=Kept)
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
            self.fail(overflow(f"more than {MAX_WAITING} events waited to be taken"))
            return
        entry = self._entry(path) if self.include_entry and kind not in _GONE else None
        self.events.append(FilesystemEvent(name=shown(path) or ".", type=kind, entry=entry))
        self._wake()

    def _entry(self, path: str) -> EntryInfo | None:
        try:
            return entry_at(self._absolute(path), self.names, self.kept)
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
            return []  # gone again, or not a directory any more: the kernel has reported it or will
        try:
            known = self.watches.get(relative)
            watch = self.hub.watch(fd, self, relative)
            return self._list(fd, relative, announce and watch != known) if self.recursive else []
        except OSError as error:
            raise cannot_watch(error, path) from error
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


def _join(relative: str, name: str) -> str:
    return f"{relative}/{name}" if relative and name else relative or name


def overflow(why: str) -> ConnectError:
    return ConnectError(Code.INTERNAL, f"watcher error: {why}, events were lost; list the directory and watch it again")


def cannot_watch(error: OSError, path: str) -> ConnectError:
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
