"""Small files that nothing can do without: each is there whole or not at all, after a power cut too."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: bytes, *, mode: int = 0o600, replace: bool = True) -> bool:
    """On the machine's disk when this returns. False: it is there already, and `replace` is not asked for.

    Raises OSError; nothing is changed then.
    """
    draft = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            if replace:
                draft.rename(path)
            else:
                os.link(draft, path)  # the first of several that do this at once wins
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
    sync(path.parent)
    return True


def sync(path: Path) -> None:
    """A file's content, or a directory's entries, are on the machine's disk when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
