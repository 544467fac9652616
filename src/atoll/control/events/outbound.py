"""One POST from this machine to an address that a caller chose: the only place where control connects anywhere.

A webhook's URL comes from anyone with an API key, and this process stands inside the operator's network. So the
address is decided on, not the name: it is resolved once, every result is checked, and the connection goes to a checked
address and nowhere else (a name that changes its mind gets nothing). Not allowed unless the operator lists it: anything
that is not globally routable, that is loopback, private networks, link-local with its metadata services, multicast, the
unspecified address. Redirects are not followed, proxies not used, of the answer only the status line is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

from atoll.model.addresses import Address, ForbiddenNetworks
from atoll.model.errors import Forbidden, InvalidRequest
from atoll.model.network import Network

TIMEOUT_S = 10.0
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r?\n")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_HEAD_MAX = 32 * 1024

LOOKUPS = 32
"""Threads that wait for name servers, of this module alone: a server that never answers holds up no other work."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was looked at: `host` without brackets, `resource` as it goes into the request line."""

    secure: bool
    host: str
    port: int
    authority: str
    resource: str


class NoAnswer(Exception):
    """Nothing that is HTTP came back: refused, too slow, not encrypted as asked."""


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Networks in CIDR form. Raises InvalidRequest naming the one that is wrong."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text.strip(), strict=False))
        except ValueError as error:
            raise InvalidRequest(f"{text!r} is not a network: {error}", hint="for example 10.0.0.0/8") from error
    return tuple(networks)


def parse_target(url: str) -> Target:
    """Raises InvalidRequest: not a URL that a webhook may have."""
    if len(url) > 2048 or not url.isprintable() or " " in url:
        raise InvalidRequest("url must be an http or https URL of at most 2048 characters, without spaces")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        ascii_host = (host or "").encode("idna").decode() if host and ":" not in host else host or ""
    except (ValueError, UnicodeError) as error:
        raise InvalidRequest(f"url cannot be understood: {error}") from error
    # Looked at after the encoding: it turns some characters into spaces.
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(ascii_host):
        raise InvalidRequest("url must begin with http:// or https:// and name a host")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest("url must not hold a user or password", hint="the signature proves who sends")
    if port == 0:
        raise InvalidRequest("url must not name port 0")
    secure = parts.scheme == "https"
    shown = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
    authority = shown if port is None else f"{shown}:{port}"
    return Target(secure, ascii_host, port or (443 if secure else 80), authority, _resource(parts))


def _resource(parts: SplitResult) -> str:
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=-._~")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=-._~?")
    return f"{path}?{query}" if query else path


def is_allowed(address: Address, forbidden: ForbiddenNetworks) -> bool:
    """May a webhook go there? What no sandbox may reach no webhook may; see the module.

    `forbidden.private_allowed` are the operator's exceptions: for webhooks also loopback, and the host's own addresses
    only where they stand there alone.
    """
    plain = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped else address
    opened = any(plain.version == network.version and plain in network for network in forbidden.private_allowed)
    if plain.is_loopback:
        return opened
    if forbidden.forbids(plain):
        return False
    return opened or (plain.is_global and not plain.is_multicast)


def addresses_of(host: str, port: int) -> list[str]:
    """Blocks. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Outbound:
    """Sends; `forbidden` says where to not, now."""

    def __init__(
        self, forbidden: Callable[[], ForbiddenNetworks] = ForbiddenNetworks, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._forbidden = forbidden
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(LOOKUPS, thread_name_prefix="webhook-names")
        self._lookups: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    def close(self) -> None:
        """Waits for no name server."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def check(self, url: str) -> None:
        """The checks that need no look-up. Raises InvalidRequest, Forbidden."""
        target = parse_target(url)
        with suppress(ValueError):
            self._check_address(ipaddress.ip_address(target.host), target)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """The status of the answer. Raises InvalidRequest, Forbidden (the address), NoAnswer."""
        target = parse_target(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(target, await self._resolve(target), headers, body)
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {self._timeout_s:g} s") from error
        except (OSError, EOFError, ssl.SSLError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from error

    async def _resolve(self, target: Target) -> list[str]:
        key = (target.host, target.port)
        lookup = self._lookups.get(key)
        if lookup is None:  # one thread for a name, however many webhooks have it
            loop = asyncio.get_running_loop()
            lookup = self._lookups[key] = loop.run_in_executor(self._threads, addresses_of, *key)
            lookup.add_done_callback(lambda done: self._looked_up(key, done))
        addresses = await asyncio.shield(lookup)
        for address in addresses:
            self._check_address(ipaddress.ip_address(address.partition("%")[0]), target)
        return addresses

    def _looked_up(self, key: tuple[str, int], done: asyncio.Future[list[str]]) -> None:
        self._lookups.pop(key, None)
        if not done.cancelled():
            done.exception()  # the caller may have given up

    def _check_address(self, address: Address, target: Target) -> None:
        if not is_allowed(address, self._forbidden()):
            raise Forbidden(
                f"webhooks may not be sent to {target.host} ({address}): it is not a public address",
                hint="the operator can allow networks with ATOLL_WEBHOOK_ALLOW_PRIVATE",
            )

    async def _exchange(self, target: Target, addresses: Sequence[str], headers: Mapping[str, str], body: bytes) -> int:
        reader, writer = await _connect(target, addresses)
        try:
            fields = {"host": target.authority, "content-length": str(len(body)), "connection": "close", **headers}
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            writer.write(f"POST {target.resource} HTTP/1.1\r\n{head}\r\n".encode("latin-1", "replace") + body)
            return await _final_status(reader)
        finally:
            writer.transport.abort()


async def _connect(target: Target, addresses: Sequence[str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    failure: OSError = ConnectionError(f"{target.host} has no address")
    tls = ssl.create_default_context() if target.secure else None
    for address in addresses:
        try:
            return await asyncio.open_connection(
                address, target.port, ssl=tls, server_hostname=target.host if tls else None, limit=_HEAD_MAX
            )
        except OSError as error:
            failure = error
    raise failure


async def _final_status(reader: asyncio.StreamReader) -> int:
    """Of the answer that is not an interim one (1xx)."""
    for _ in range(8):
        try:
            found = _STATUS_LINE.fullmatch(await reader.readline())
            if found is None:
                raise NoAnswer("the answer is not HTTP")
            if int(found.group(1)) >= 200:
                return int(found.group(1))
            while (await reader.readline()).strip():
                pass
        except ValueError as error:
            raise NoAnswer("the answer's head is too long") from error
    raise NoAnswer("only interim answers came")
