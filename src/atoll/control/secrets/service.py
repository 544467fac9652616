"""A team's secrets: written, never given back. Egress rules name them, and get their values where they are enforced."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from atoll.control.access.auth import Caller
from atoll.control.clock import Clock
from atoll.control.secrets.placeholders import filled, filled_size, names_in
from atoll.control.store.secrets import Secret, SecretTables
from atoll.model.errors import InvalidRequest, NotFound, QuotaExceeded
from atoll.model.network import MAX_RULE_BYTES, NetworkPolicy, is_header_value

MAX_SECRETS = 200
"""Of one team."""
MAX_VALUE = 16 * 1024
MAX_PAGE = 100
_NAME = re.compile(r"[a-z0-9_-]{1,128}")
_ID_PREFIX = "sec_"
_MAX_ENTRIES, _MAX_KEY, _MAX_TEXT, _MAX_METADATA = 32, 128, 1024, 8192


@dataclass(frozen=True, slots=True)
class SecretPage:
    """`next_token` None: the last one."""

    secrets: tuple[Secret, ...]
    next_token: str | None


class SecretService:
    """`on_change(team_id, name or id)` is called after every change, so that running sandboxes follow it."""

    def __init__(self, tables: SecretTables, clock: Clock, on_change: Callable[[str, Secret], Awaitable[None]]) -> None:
        self._tables = tables
        self._clock = clock
        self._on_change = on_change

    async def add(self, caller: Caller, name: str, value: str, metadata: Mapping[str, str]) -> Secret:
        """Raises InvalidRequest, Conflict (the name is taken), QuotaExceeded."""
        canonical = name.lower()
        if not _NAME.fullmatch(canonical) or canonical.startswith(_ID_PREFIX):
            raise InvalidRequest(
                f"name: {name[:200]!r} is no secret's name", hint="1 to 128 of a-z, 0-9, _ and -, not beginning sec_"
            )
        _check(value, metadata)
        if await self._tables.count(caller.team_id) >= MAX_SECRETS:
            raise QuotaExceeded(f"a team may have {MAX_SECRETS} secrets", hint="delete one")
        now = self._clock.now()
        secret = Secret(_new_id(), caller.team_id, canonical, 1, dict(metadata), now, now)
        await self._tables.add(secret, value)
        await self._on_change(caller.team_id, secret)
        return secret

    async def get(self, caller: Caller, name: str) -> Secret:
        """By its id or its name. Raises NotFound: unknown, or another team's."""
        found = await self._tables.find(caller.team_id, name.lower())
        if found is None:
            raise NotFound(f"secret {name[:200]!r} not found")
        return found

    async def page(self, caller: Caller, limit: int, token: str | None) -> SecretPage:
        """By name. Raises InvalidRequest: not a token of ours."""
        found = await self._tables.page(caller.team_id, _name_of(token), limit + 1)
        more = len(found) > limit
        return SecretPage(tuple(found[:limit]), _token_of(found[limit - 1].name) if more else None)

    async def change(self, caller: Caller, name: str, value: str, metadata: Mapping[str, str] | None) -> Secret:
        """A new version, at once in force. Raises NotFound, InvalidRequest."""
        _check(value, metadata or {})
        found = await self.get(caller, name)
        if not await self._tables.change(caller.team_id, found.secret_id, value, metadata, self._clock.now()):
            raise NotFound(f"secret {name[:200]!r} not found")
        await self._on_change(caller.team_id, found)
        return await self.get(caller, found.secret_id)

    async def remove(self, caller: Caller, name: str) -> None:
        """From now on no request carries it. Raises NotFound."""
        found = await self.get(caller, name)
        await self._tables.remove(caller.team_id, found.secret_id)
        await self._on_change(caller.team_id, found)


class SecretFilling:
    """What a policy is where it is enforced."""

    def __init__(self, tables: SecretTables) -> None:
        self._tables = tables

    async def of_order(self, team_id: str, network: NetworkPolicy) -> NetworkPolicy:
        """Raises InvalidRequest: it names a secret that the team has not."""
        names = names_in(network)
        values = await self._tables.values(team_id, names) if names else {}
        if missing := sorted(names - values.keys()):
            raise InvalidRequest(f"rules: there is no secret {missing[0][:200]!r}", hint="make it first: POST /secrets")
        if (size := filled_size(network, values)) > MAX_RULE_BYTES:
            raise InvalidRequest(f"rules: {size} bytes in all with their secrets, more than {MAX_RULE_BYTES}")
        return filled(network, values)

    async def as_it_is_now(self, team_id: str, network: NetworkPolicy) -> NetworkPolicy:
        """Headers with a secret that is no more are left out; all of them where they have grown beyond the bound."""
        if not (names := names_in(network)):
            return network
        values = await self._tables.values(team_id, names)
        return filled(network, values if filled_size(network, values) <= MAX_RULE_BYTES else {})


def _check(value: str, metadata: Mapping[str, str]) -> None:
    if not 1 <= len(value) <= MAX_VALUE or not is_header_value(value):
        raise InvalidRequest(f"value: 1 to {MAX_VALUE} characters that a header of HTTP can carry (no line ends)")
    sizes = [(_size(key), _size(text)) for key, text in metadata.items()]
    if len(sizes) > _MAX_ENTRIES or sum(map(sum, sizes)) > _MAX_METADATA:
        raise InvalidRequest(f"metadata: more than {_MAX_ENTRIES} entries or {_MAX_METADATA} bytes")
    if any(key > _MAX_KEY or text > _MAX_TEXT for key, text in sizes):
        raise InvalidRequest(f"metadata: a key has at most {_MAX_KEY} bytes, a value {_MAX_TEXT}")


def _size(text: str) -> int:
    if "\0" in text:
        raise InvalidRequest("metadata: a NUL character")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest("metadata: half a surrogate pair") from error


def _new_id() -> str:
    return _ID_PREFIX + base64.b32encode(secrets.token_bytes(15)).decode().lower()


def _token_of(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _name_of(token: str | None) -> str:
    if not token:
        return ""
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError as error:
        raise InvalidRequest("nextToken: not one that this server gave") from error
