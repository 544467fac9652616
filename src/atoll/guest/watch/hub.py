"""The guest's one inotify instance, and which trees listen to which watch on it.

One instance serves all watches: instances are scarce (128 per user of the *host* by default, all sandboxes together).
It exists only while something is watched.
"""

from __future__ import annotations

import asyncio
import errno

from atoll.guest.watch import inotify
from atoll.guest.watch.inotify import Inotify, RawEvent
from atoll.guest.watch.tree import Tree, cannot_watch, overflow
from atoll.wire.envd.connect import Code, ConnectError

MAX_WATCHES = 256
"""Watches of one sandbox, streams and polled ones together."""
_ROUNDS = 16
"""Reads of the kernel's queue in one turn of the event loop."""


class Hub:
    """See the module."""

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
                raise cannot_watch(error, tree.root) from error
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
                tree.fail(overflow("the kernel's queue of file events was full"))
        elif raw.mask & inotify.IGNORED:
            for tree, relative in self._listeners.pop(raw.watch, ()):
                if tree.watches.get(relative) == raw.watch:
                    del tree.watches[relative]
        else:
            for tree, relative in tuple(self._listeners.get(raw.watch, ())):
                tree.feed(relative, raw)
