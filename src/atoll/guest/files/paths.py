"""What a path in a request means: pure text, no file is touched.

Rules as in E2B's envd: an empty path is the default workdir (else the home), `~` and `~/x` the user's home, a relative
path starts at the home. `..` in an absolute path is left to the kernel, so that it means what it means to the user's
programs.
"""

from __future__ import annotations

import os
import posixpath

from atoll.guest.errors import GuestError

PATH_MAX = 4096
"""Linux' limit on one path, in bytes, with the closing NUL."""


class InvalidPath(GuestError, ValueError):
    """The text cannot be a path; the message says why."""


def resolve(path: str, home: str, default_workdir: str | None = None) -> str:
    """The absolute path that `path` means for a user with this home. Raises InvalidPath."""
    if not path:
        path = default_workdir or home
    if "\0" in path:
        raise InvalidPath("path contains a NUL character")
    if path.startswith("~"):
        if path[1:2] not in ("", "/"):
            raise InvalidPath(
                f"failed to expand path {shown(path)!r}: cannot expand user-specific home dir; write the path in full"
            )
        path = home + path[1:]
    resolved = _clean(path) if path.startswith("/") else posixpath.normpath(posixpath.join("/", home, path))
    try:
        size = len(os.fsencode(resolved))
    except UnicodeEncodeError:
        raise InvalidPath("path contains a lone surrogate and cannot be a file name") from None
    if size >= PATH_MAX:
        raise InvalidPath(f"path is {size} bytes long; the limit is {PATH_MAX - 1}")
    return resolved


def _clean(path: str) -> str:
    """Without doubled slashes, `.` and a slash at the end; `..` stays."""
    if "//" not in path and "/." not in path and not path.endswith("/"):
        return path
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def shown(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become U+FFFD (and do not lead back to the file)."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
