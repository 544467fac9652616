"""Archives that clients upload for the COPY steps of their builds, by team and by the client's own hash of the content.

    <directory>/<team_id>/<hash>       whole archives, tar or tar.gz as they came; nothing here looks inside
    <directory>/.arriving/…            those under way

The link is good for one hash of one team, for LINK_S, and is signed with a key that dies with the process. Archives
that no build has used for KEPT_S are removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from atoll.control.templates.steps import FILES_HASH
from atoll.model.errors import Forbidden, InvalidRequest, QuotaExceeded

LINK_S = 3600.0
KEPT_S = 7 * 86400.0
MAX_BYTES = 4 << 30
MAX_TEAM_BYTES = 16 << 30
"""Of all archives of one team, those under way included: they stay for days, and the disk is everybody's."""
LEAST_FREE = 0.05
"""Of the file system: an upload never takes the last part of it, which is the server's own records' too."""
PREFIX = "/templates/uploads/"
"""Paths below it need no key: the link itself is the permission."""

_TEAM = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PIECE = 1 << 20


def check_hash(text: str) -> str:
    """Raises InvalidRequest."""
    if not FILES_HASH.fullmatch(text):
        raise InvalidRequest("the files' hash must be a SHA-256 in lower-case hex")
    return text


class Uploads:
    """The archives below one directory, of one server."""

    def __init__(self, directory: Path, *, max_bytes: int = MAX_BYTES, max_team_bytes: int = MAX_TEAM_BYTES) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._max_team_bytes = max_team_bytes
        self._arriving: Counter[str] = Counter()
        """Bytes of each team that are under way."""
        self._key = secrets.token_bytes(32)

    def find(self, team_id: str, files_hash: str) -> Path | None:
        """The archive, kept for another KEPT_S."""
        path = self._path(team_id, files_hash)
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def link(self, team_id: str, files_hash: str) -> str:
        """The path that takes it, by PUT."""
        due = int(time.time() + LINK_S)
        return f"{PREFIX}{team_id}/{files_hash}/{due}/{self._sign(team_id, files_hash, str(due))}"

    async def receive(self, path: str, pieces: AsyncIterator[bytes]) -> None:
        """Stores what comes for a link.

        Raises Forbidden (not a link of ours, or an old one), InvalidRequest (too large), QuotaExceeded (no room).
        """
        parts = path.removeprefix(PREFIX).split("/")
        if len(parts) != 4 or not hmac.compare_digest(
            self._sign(*parts[:3]), parts[3].encode("ascii", "replace").decode()
        ):
            raise Forbidden("this is not an upload link of this server; ask for one again")
        team_id, files_hash, due, _ = parts
        if int(due) < time.time():
            raise Forbidden("the upload link has expired; ask for one again")
        target = self._path(team_id, files_hash)
        draft = self._directory / ".arriving" / secrets.token_hex(16)
        for folder in (draft.parent, target.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            await self._write(draft, team_id, pieces)
            await asyncio.to_thread(draft.rename, target)
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()

    async def _write(self, draft: Path, team_id: str, pieces: AsyncIterator[bytes]) -> None:
        total, waiting = 0, bytearray()
        kept = await asyncio.to_thread(self._kept, team_id)
        try:
            with draft.open("xb") as file:
                async for piece in pieces:
                    total += len(piece)
                    self._arriving[team_id] += len(piece)
                    if total > self._max_bytes:
                        raise InvalidRequest(f"the archive is larger than {self._max_bytes >> 20} MiB")
                    if kept + self._arriving[team_id] > self._max_team_bytes:
                        raise QuotaExceeded(
                            f"the team's uploads would have more than {self._max_team_bytes >> 20} MiB",
                            hint=f"those that no build uses are removed after {KEPT_S / 86400:.0f} days",
                        )
                    waiting += piece
                    if len(waiting) >= _PIECE:
                        await asyncio.to_thread(self._append, file, bytes(waiting))
                        waiting.clear()
                await asyncio.to_thread(self._append, file, bytes(waiting))
        finally:
            self._arriving[team_id] -= total

    def _kept(self, team_id: str) -> int:
        """Bytes of its archives. Blocks."""
        with contextlib.suppress(FileNotFoundError):
            return sum(entry.stat().st_size for entry in os.scandir(self._directory / team_id))
        return 0

    def _append(self, file: BinaryIO, data: bytes) -> None:
        usage = shutil.disk_usage(self._directory)
        if usage.free - len(data) < usage.total * LEAST_FREE:
            raise QuotaExceeded("the server's disk is nearly full: no room for an upload", hint="try again later")
        file.write(data)

    def sweep(self) -> int:
        """Removes what was not used for long; returns how many. Blocks."""
        removed = 0
        for path in self._directory.glob("*/*"):
            with contextlib.suppress(OSError):
                if path.is_file() and path.stat().st_mtime < time.time() - KEPT_S:
                    path.unlink()
                    removed += 1
        return removed

    def _path(self, team_id: str, files_hash: str) -> Path:
        if not _TEAM.fullmatch(team_id) or not FILES_HASH.fullmatch(files_hash):
            raise InvalidRequest("neither a team nor a hash")
        return self._directory / team_id / files_hash

    def _sign(self, *parts: str) -> str:
        return hmac.new(self._key, "/".join(parts).encode(), hashlib.sha256).hexdigest()


async def read_pieces(path: Path) -> AsyncIterator[bytes]:
    """A file, in pieces that fit into memory."""
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece
