"""An object store: files by key, which several machines see. A directory that they share, or S3's protocol.

    file:///srv/atoll-objects                                   a directory (a mount of NFS, or of one machine alone)
    s3://bucket/prefix?endpoint=https://s3.example.test         the extra `atoll[s3]`; keys as every S3 client has them

An object is whole or not there, and never changes. All of it blocks: call it in a thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from atoll.model.errors import InvalidRequest
from atoll.objects.directory import DirectoryObjects

__all__ = ["Objects", "open_objects"]


class Objects(Protocol):
    """Keys are relative paths of lower-case letters, digits, `-`, `.` and `/`."""

    def has(self, key: str) -> bool:
        """Raises OSError."""
        ...

    def put(self, key: str, source: Path) -> None:
        """A copy of the file, in place of an earlier one. Raises OSError."""
        ...

    def get(self, key: str, target: Path) -> bool:
        """A copy of the object becomes the file `target`. False: there is none. Raises OSError."""
        ...


def open_objects(url: str) -> Objects:
    """Raises InvalidRequest: not a URL of either kind, or the client for it is not installed."""
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc:
        return DirectoryObjects(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        try:
            from atoll.objects.s3 import S3Objects
        except ImportError as error:
            raise InvalidRequest("the client for s3:// is not installed", hint="pip install 'atoll[s3]'") from error
        query = parse_qs(parts.query)
        return S3Objects(parts.netloc, parts.path.strip("/"), query.get("endpoint", [None])[0])
    raise InvalidRequest(
        f"an object store is file:///DIRECTORY or s3://BUCKET/PREFIX, not {url.partition('?')[0][:100]!r}"
    )
