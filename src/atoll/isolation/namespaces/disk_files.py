"""What a sandbox of this tier has written, as files of its directory: an image, or a directory where none is used.

Blocking; called in threads. Everything raises OSError.
"""

from __future__ import annotations

from pathlib import Path

from atoll.isolation.linux.disk import kept
from atoll.isolation.linux.disk.image import IMAGE, UPPER
from atoll.isolation.namespaces.zygote_client import OwnLayer
from atoll.model import durable


class DiskFiles:
    """Of one sandbox."""

    def __init__(self, state_dir: Path, *, has_image: bool) -> None:
        self._state_dir = state_dir
        self._image = state_dir / IMAGE
        self._has_image = has_image

    def flush(self, *, ahead: bool = False) -> None:
        """All that was written is on the machine's disk; `ahead`: as good as, so that the next flush is quick."""
        if self._has_image:
            kept.flush(self._image, ahead=ahead)
        else:
            kept.sync_tree(self._state_dir)

    def settle(self) -> None:
        """As `flush`, once its last process has ended."""
        if self._has_image:
            kept.wait_until_released(self._image)
            durable.sync(self._image)
        else:
            kept.sync_tree(self._state_dir)

    def copy(self, target: Path, *, frozen: bool) -> None:
        """Its image as of one moment. Unless all its processes are `frozen`, programs see writes wait."""
        kept.copy(self._image, target, stop=not frozen)

    def reopen(self) -> OwnLayer:
        """For a sandbox that is made again on what it has written. The mount is the caller's."""
        if self._has_image:
            return OwnLayer(is_there=True, mount=kept.reopen(self._image))
        if not (self._state_dir / UPPER).is_dir():
            raise FileNotFoundError(f"{self._state_dir} holds no layer")
        return OwnLayer(is_there=True, mount=None)
