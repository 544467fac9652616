"""The creates that the server has asked for and that no child has taken yet, in order.

asked ──► waiting ──► taken by a child ──► started
             └── for a disk of its size, which the server is making: those behind it go on meanwhile
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atoll.isolation.linux.disk.image import IMAGE, Disk
from atoll.isolation.namespaces.root import PoolKey
from atoll.model.sandbox import Limits


class Request:
    """One create of the server."""

    def __init__(self, body: dict[str, Any], listener: int, sealed_spec: int, kept_disk: int | None = None) -> None:
        self.number: int = body["id"]
        self.lower_dirs: list[str] = body["lower_dirs"]
        self.state_dir: str = body["state_dir"]
        self.limits = Limits.from_json(body["limits"])
        self.one_off: bool = body["one_off"]
        self.volumes: list[tuple[str, str]] = [(device, path) for device, path in body["volumes"]]
        """(block device, path inside)."""
        self.devices: list[tuple[str, str]] = [(source, path) for source, path in body["devices"]]
        """(character device of the host's, path inside)."""
        self.shown: list[tuple[str, str]] = [(source, path) for source, path in body["shown"]]
        """(file or directory of the host's that is shown read-only, path inside)."""
        self.handed_on = [listener, sealed_spec]
        """For the child alone: the zygote reads from neither, for its memory is every later sandbox's too."""
        self.key: PoolKey | None = None
        self.disk: Disk | None = None
        """Kept for it, where no child of the pool brings one along."""
        self.resumes: bool = body["resumes"]
        """It has a layer of its own already: on a disk that came along, or in its directory."""
        if kept_disk is not None:
            self.disk = Disk(Path(self.state_dir) / IMAGE, kept_disk, self.limits.disk_mib, is_kept=True)
        self.awaits_disk = False
        """The server has been asked for one."""
        self.tried_again = False
        self.stages: dict[str, float] = {"received": time.monotonic()}

    @property
    def has_mounts(self) -> bool:
        """Beside its root: a root that has been entered takes no more."""
        return bool(self.volumes or self.devices or self.shown)

    def close(self) -> None:
        """Lets go of what only a child could use. Idempotent."""
        while self.handed_on:
            os.close(self.handed_on.pop())


class RequestQueue:
    """Requests in the order in which they came; one that waits for its disk does not hold up the others."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._waiting))

    def add(self, request: Request) -> None:
        """At the end."""
        self._waiting.append(request)

    def add_first(self, request: Request) -> None:
        """One that was taken before, by a child that ended."""
        self._waiting.appendleft(request)

    def remove(self, request: Request) -> None:
        """It is taken, or given up."""
        self._waiting.remove(request)

    def first_awaiting(self, size_mib: int) -> Request | None:
        """Whom a disk of that size, or the news that there will be none, is for."""
        awaiting = (one for one in self._waiting if one.awaits_disk and one.disk is None)
        return next((one for one in awaiting if one.limits.disk_mib == size_mib), None)
