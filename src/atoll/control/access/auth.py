"""Who is asking: API keys to teams. Keys are compared and kept only as SHA-256 digests (they are random, not words).

Two sources: the configuration (ATOLL_API_KEYS, else one key generated into DATA_DIR/api-key), which belongs to the
default team, and the store's `api_keys` table. Does not know HTTP; `gate` reads the headers.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from atoll.model import durable
from atoll.model.errors import InvalidRequest, Unauthorized

DEFAULT_TEAM_ID = "00000000-0000-4000-8000-000000000001"
"""The team that every configured key belongs to. A UUID, as E2B's team ids are."""

API_KEY_FILE = "api-key"
_USE_NOTED_EVERY = timedelta(minutes=1)
_USABLE_KEY = re.compile(r"[\x21-\x7e]{1,512}")


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated request's author. `key` is what was presented; GET /teams gives it back to its owner."""

    team_id: str
    key: str = field(repr=False)


class KeyStore(Protocol):
    """Where further keys are kept; the store."""

    async def team_of(self, digest: str) -> str | None:
        """The team whose key has this SHA-256 hex digest."""
        ...

    async def used(self, digest: str, at: datetime) -> None:
        """Notes when the key was last used."""
        ...


class Authenticator:
    """Turns a presented key into a Caller."""

    def __init__(self, configured: Iterable[str], keys: KeyStore) -> None:
        self._configured = tuple(digest_of(key) for key in configured)
        self._keys = keys
        self._used: dict[str, datetime] = {}

    async def authenticate(self, key: str | None) -> Caller:
        """Raises Unauthorized."""
        if not key:
            raise Unauthorized("no API key", hint="send it in the X-API-Key header; `atoll env` prints it")
        digest = digest_of(key)
        # Every configured digest is compared, in constant time each: the answer's timing reveals nothing.
        known = [hmac.compare_digest(digest, one) for one in self._configured]
        if any(known):
            return Caller(DEFAULT_TEAM_ID, key)
        team_id = await self._keys.team_of(digest)
        if team_id is None:
            raise Unauthorized("the API key is not known here")
        await self._note_use(digest)
        return Caller(team_id, key)

    async def _note_use(self, digest: str) -> None:
        """To the minute is enough: not every request pays for a write."""
        now = datetime.now(UTC)
        noted = self._used.get(digest)
        if noted is None or now - noted >= _USE_NOTED_EVERY:
            self._used[digest] = now
            await self._keys.used(digest, now)


def digest_of(key: str) -> str:
    """How a key is kept: SHA-256, hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    """A fresh key in E2B's form, which older SDKs check: `e2b_` and hex digits."""
    return "e2b_" + secrets.token_hex(20)


def configured_keys(api_keys: tuple[str, ...], data_dir: Path) -> tuple[str, ...]:
    """The keys of the default team: `api_keys` (from Settings), else the one in DATA_DIR/api-key, generated if missing.

    The file has mode 0600. `atoll env` calls this too, so that it prints what the server accepts.
    Raises InvalidRequest: a key cannot be sent in a header, or the file is empty. OSError: the file cannot be used.
    """
    keys = api_keys or (_generated_key(data_dir / API_KEY_FILE),)
    for key in keys:
        if not _USABLE_KEY.fullmatch(key):
            raise InvalidRequest("an API key must be 1 to 512 visible ASCII characters without spaces")
    return keys


def _generated_key(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        durable.write(path, f"{new_key()}\n".encode(), replace=False)
    key = path.read_text().strip()
    if not key:
        raise InvalidRequest(f"{path} is empty", hint="remove it; the next start writes a new key")
    return key
