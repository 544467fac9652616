"""Objects as files below one directory, which machines may share."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path


class DirectoryObjects:
    """See Objects. A file has its name once it is whole and on the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, key: str) -> bool:
        """See Objects."""
        return (self._root / key).is_file()

    def put(self, key: str, source: Path) -> None:
        """See Objects."""
        target = self._root / key
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
        try:
            shutil.copyfile(source, draft)
            with draft.open("rb") as written:
                os.fsync(written.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def get(self, key: str, target: Path) -> bool:
        """See Objects."""
        try:
            shutil.copyfile(self._root / key, target)
        except FileNotFoundError:
            return False
        return True
