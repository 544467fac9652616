"""Asks the upstream name servers on behalf of the gateway: raw DNS messages, over UDP or TCP as asked."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from atoll.egress import dns
from atoll.model.network import canonical_name

_TRY_S = 2.0
_TRIES = 3


def host_name_servers(resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """The host's own name servers (IP addresses), in order; empty if it has none."""
    servers: list[str] = []
    with contextlib.suppress(OSError):
        for line in resolv_conf.read_text("utf-8", "replace").splitlines():
            words = line.split()
            if len(words) >= 2 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    ipaddress.ip_address(words[1].split("%")[0])
                    servers.append(words[1])
    return tuple(servers)


def search_domains(resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """The zones in which the host looks for short names: the operator's own. Canonical."""
    domains: list[str] = []
    with contextlib.suppress(OSError):
        for line in resolv_conf.read_text("utf-8", "replace").splitlines():
            words = line.split()
            if words[:1] in (["search"], ["domain"]):
                domains += [canonical_name(word) for word in words[1:] if canonical_name(word)]
    return tuple(domains)


class _OneAnswer(asyncio.DatagramProtocol):
    def __init__(self, message_id: bytes, question: dns.Question) -> None:
        self._message_id = message_id
        self._question = question
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self.answer.done() or data[:2] != self._message_id:
            return
        with contextlib.suppress(dns.BadMessage, IndexError, struct.error):
            dns.parse_answer(data, self._question)
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


async def _over_udp(server: str, query: bytes, question: dns.Question) -> bytes:
    # A fresh source port and id per question: what makes a blind answer from elsewhere hard.
    message_id = os.urandom(2)
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: _OneAnswer(message_id, question), remote_addr=(server, 53), family=family
    )
    try:
        transport.sendto(dns.forward(message_id, query, question, tcp=False))
        return await asyncio.wait_for(protocol.answer, _TRY_S)
    finally:
        transport.close()
        if protocol.answer.done() and not protocol.answer.cancelled():
            protocol.answer.exception()


async def _over_tcp(server: str, query: bytes, question: dns.Question) -> bytes:
    reader, writer = await asyncio.wait_for(asyncio.open_connection(server, 53), _TRY_S)
    try:
        message = dns.forward(os.urandom(2), query, question, tcp=True)
        writer.write(struct.pack(">H", len(message)) + message)
        size = struct.unpack(">H", await asyncio.wait_for(reader.readexactly(2), _TRY_S))[0]
        answer = await asyncio.wait_for(reader.readexactly(size), _TRY_S)
        dns.parse_answer(answer, question)
        return answer
    finally:
        writer.close()


async def resolve(servers: Iterable[str], query: bytes, question: dns.Question, *, tcp: bool = False) -> bytes | None:
    """The first good answer, with the query's own id; None if nobody answered in time."""
    ask = _over_tcp if tcp else _over_udp
    chain = list(servers)
    for attempt in range(_TRIES):
        if not chain:
            return None
        with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, dns.BadMessage, struct.error):
            answer = await ask(chain[attempt % len(chain)], query, question)
            return query[:2] + answer[2:]
    return None
