"""filesystem.Filesystem's watching: WatchDir (a stream) and CreateWatcher, GetWatcherEvents, RemoveWatcher (polled).

    kernel ──inotify──► Hub ──RawEvent──► Tree (one per watch) ──FilesystemEvent──► its mailbox ──► stream or poll
                        one descriptor    paths, recursion,        bounded
                        for the guest     rename pairs

`watch_hub` owns the inotify instance, `watch_tree` makes events of what it says; here they meet the protocol.

Events mean what Go's fsnotify makes of inotify, since that is what E2B sends: a rename is RENAME of the old name and
CREATE of the new one. Names are relative to the watched directory; `.` is that directory itself. Uploads through
`/files` appear as CREATE (when new), CHMOD, WRITE of their target; see `uploads.py`.

An event that was lost (kernel queue or mailbox full) ends the watch with an error; it is never silent.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator

from atoll.guest.files.paths import shown
from atoll.guest.files.safe_open import is_network_filesystem, open_directory
from atoll.guest.files.service import failure
from atoll.guest.process.service import keepalive_interval
from atoll.guest.state import GuestState
from atoll.guest.watch import hub as watch_hub
from atoll.guest.watch.hub import Hub
from atoll.guest.watch.tree import Tree
from atoll.wire.envd.connect import Call, Code, ConnectError, Service
from atoll.wire.envd.filesystem import (
    CreateWatcherRequest,
    CreateWatcherResponse,
    GetWatcherEventsRequest,
    GetWatcherEventsResponse,
    RemoveWatcherRequest,
    RemoveWatcherResponse,
    WatchDirRequest,
    WatchDirResponse,
    WatchKeepAlive,
    WatchStart,
)

POLL_EXPIRY_S = 3600.0
"""A polled watch that nobody has asked for so long is given up when room is needed."""


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
        if len(self._hub) < watch_hub.MAX_WATCHES:
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
        tree = Tree(
            path, request.recursive, request.include_entry, self._state.users, self._hub, self._state.tier.metadata
        )
        await self._hub.open(tree)
        return tree


def _is_network(path: str) -> bool:
    try:
        return is_network_filesystem(path)
    except OSError:
        return False
