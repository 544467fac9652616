"""The gateway: one `Exit` per sandbox, made from the two sockets that live in the sandbox's network namespace.

Owns accepting, deciding (through the pure modules), connecting, relaying and recording. Does not own the sockets'
making (the isolation tier does that) nor who asks for which policy (control does).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime

import structlog

from atoll.node.gateway import dns
from atoll.node.gateway.guard import HostGuard
from atoll.node.gateway.names import AnsweredNames
from atoll.node.gateway.policy import (
    Address,
    EgressPolicy,
    Ground,
    Verdict,
    canonical_name,
    decide_address,
    decide_name,
)
from atoll.node.gateway.records import EgressRecord, Ledger
from atoll.node.gateway.relay import Pipe
from atoll.node.gateway.resolver import host_name_servers, resolve
from atoll.node.gateway.sniff import MAX_HELLO, Beginning, Speech, sniff

SO_ORIGINAL_DST = 80
_MAX_CONNECTIONS = 2048
_MAX_QUESTIONS = 256
_CONNECT_S = 10.0
_SPEAK_S = 10.0
"""How long a connection that only its name can open may stay silent."""
_QUIET_S = 0.3
"""How long, on a port where the server speaks first, the gateway waits for the client to name itself."""
_WEB_PORTS = frozenset({80, 443})

log = structlog.get_logger("atoll.gateway")


def host_addresses() -> frozenset[Address]:
    """Addresses by which this host reaches and is reached, as far as routing tells without asking the network."""
    found: set[Address] = set()
    probes = ((socket.AF_INET, ("192.0.2.254", 9)), (socket.AF_INET6, ("2001:db8::1", 9)))
    for family, target in probes:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # no packet is sent: it only picks a route
            found.add(ipaddress.ip_address(probe.getsockname()[0].split("%")[0]))
    with contextlib.suppress(OSError):
        for info in socket.getaddrinfo(socket.gethostname(), None):
            with contextlib.suppress(ValueError):
                found.add(ipaddress.ip_address(str(info[4][0]).split("%")[0]))
    return frozenset(found)


class Exit:
    """The way out of one sandbox. `policy` may be replaced at any time; open connections keep the verdict they got."""

    def __init__(
        self,
        listener: socket.socket,
        questions: socket.socket,
        policy: EgressPolicy,
        ground: Ground,
        *,
        name_servers: tuple[str, ...] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self.ledger = Ledger()
        self._ground = ground
        self._listener = listener
        self._questions = questions
        self._name_servers = name_servers
        self._names = AnsweredNames(clock)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pipes: set[Pipe] = set()
        self._asking = 0
        self._loop = asyncio.get_running_loop()
        listener.setblocking(False)
        questions.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)
        self._loop.add_reader(questions.fileno(), self._read_questions)

    async def aclose(self) -> None:
        """Cuts every connection and frees the sockets (a held one would keep the namespace alive). Idempotent."""
        if self._listener.fileno() < 0:
            return
        self._loop.remove_reader(self._listener.fileno())
        self._loop.remove_reader(self._questions.fileno())
        self._listener.close()
        self._questions.close()
        for pipe in list(self._pipes):
            pipe.abort()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- TCP

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                client, source = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                log.warning("egress accept failed", error=str(error))
                return
            client.setblocking(False)
            self._spawn(self._serve(client, source[1]))

    def _record(self, protocol: str, source_port: int, address: str, port: int) -> EgressRecord:
        return EgressRecord(datetime.now(UTC), protocol, source_port, address, port, "", Verdict.FAILED)

    async def _serve(self, client: socket.socket, source_port: int) -> None:
        """One connection from accept to the moment both ends are joined (relaying needs no task)."""
        joined = False
        try:
            raw = client.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
            port, packed = struct.unpack_from(">2xH4s", raw)
            address = ipaddress.ip_address(packed)
            record = self._record("tcp", source_port, str(address), port)
            if port == 53:
                await self._serve_dns_stream(client, record)
                return
            head, beginning = b"", Beginning(Speech.OTHER)
            verdict = decide_address(self.policy, self._ground, address)
            if len(self._pipes) >= _MAX_CONNECTIONS:
                verdict = Verdict.DENIED_LIMIT
            if verdict is None:
                answered = self._names.names(address)
                web = port in _WEB_PORTS
                head, beginning = await self._listen(client, _SPEAK_S if web else _QUIET_S)
                record.name = canonical_name(beginning.name or "")
                verdict = decide_name(self.policy, beginning.name, answered, must_speak=web)
                if not record.name and answered:
                    record.name = min(answered)
            else:
                record.name = min(self._names.names(address), default="")
            record.verdict = verdict
            self.ledger.add(record)
            if verdict.allowed:
                joined = await self._join(client, address, port, head, beginning, record)
        except OSError as error:
            log.debug("egress connection ended early", error=str(error))
        finally:
            if not joined:
                _refuse(client)

    async def _listen(self, client: socket.socket, patience_s: float) -> tuple[bytes, Beginning]:
        """The connection's first bytes, as many as it takes to know its name."""
        head = b""
        beginning = sniff(head)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while beginning.speech is Speech.UNDECIDED and len(head) <= MAX_HELLO + 5 * 8:
                    chunk = await self._loop.sock_recv(client, 1 << 14)
                    if not chunk:
                        break
                    head += chunk
                    beginning = sniff(head)
        return head, beginning

    async def _join(
        self,
        client: socket.socket,
        address: Address,
        port: int,
        head: bytes,
        beginning: Beginning,
        record: EgressRecord,
    ) -> bool:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        remote = socket.socket(family, socket.SOCK_STREAM)
        try:
            remote.setblocking(False)
            async with asyncio.timeout(_CONNECT_S):
                await self._loop.sock_connect(remote, (str(address), port))
        except (OSError, TimeoutError):
            record.verdict = Verdict.FAILED
            remote.close()
            return False
        except BaseException:
            remote.close()
            raise
        for end in (client, remote):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def closed() -> None:
            self._pipes.discard(inner)
            self._pipes.discard(outer)
            record.bytes_out, record.bytes_in = inner.received + len(head), outer.received
            record.closed_at = record.closed_at or datetime.now(UTC)

        inner, outer = Pipe(closed), Pipe(closed)
        self._pipes |= {inner, outer}
        if beginning.speech is Speech.HTTP and beginning.name is not None:
            policy, names = self.policy, self._names
            guard = HostGuard(lambda name: decide_name(policy, name, names.names(address), must_speak=True).allowed)
            inner.inspect(guard.feed)
        await self._loop.create_connection(lambda: outer, sock=remote)
        await self._loop.create_connection(lambda: inner, sock=client)
        outer.join(inner)
        inner.join(outer, head)
        return True

    # --- DNS

    def _read_questions(self) -> None:
        for _ in range(64):
            try:
                query, source = self._questions.recvfrom(dns.MAX_UDP + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                return
            if self._asking >= _MAX_QUESTIONS:
                continue
            self._asking += 1
            self._spawn(self._answer_datagram(query, source))

    async def _answer_datagram(self, query: bytes, source: tuple[str, int]) -> None:
        try:
            answer = await self._answer(query, self._record("dns", source[1], "", 53))
            if answer is not None and self._questions.fileno() >= 0:
                with contextlib.suppress(OSError):
                    self._questions.sendto(answer, source)
        finally:
            self._asking -= 1

    async def _serve_dns_stream(self, client: socket.socket, record: EgressRecord) -> None:
        """DNS over TCP (RFC 7766): the same decisions; a few questions per connection."""
        pending = b""
        async with asyncio.timeout(_SPEAK_S):
            for _ in range(32):
                while len(pending) < 2 or len(pending) < 2 + int.from_bytes(pending[:2], "big"):
                    chunk = await self._loop.sock_recv(client, 1 << 12)
                    if not chunk or len(pending) > dns.MAX_UDP:
                        return
                    pending += chunk
                size = int.from_bytes(pending[:2], "big")
                query, pending = pending[2 : 2 + size], pending[2 + size :]
                source = self._record("dns", record.source_port, record.address, 53)
                answer = await self._answer(query, source, tcp=True)
                if answer is None:
                    return
                await self._loop.sock_sendall(client, struct.pack(">H", len(answer)) + answer)

    async def _answer(self, query: bytes, record: EgressRecord, *, tcp: bool = False) -> bytes | None:
        """The answer for one question; None for what deserves none (not DNS at all)."""
        try:
            question = dns.parse_query(query)
        except dns.BadMessage:
            return dns.answer(query, None, dns.FORMERR) if len(query) >= 12 else None
        record.name = question.name
        if not self.policy.may_resolve(question.name):
            record.verdict = Verdict.DENIED_NAME
            self.ledger.add(record)
            return dns.answer(query, question, dns.REFUSED)
        record.verdict = Verdict.ALLOWED
        if question.kind in (dns.TYPE_AAAA, dns.TYPE_HTTPS, dns.TYPE_SVCB):
            # No IPv6 inside; and HTTPS records would hide the server's name (ECH) from the policy.
            return dns.answer(query, question, dns.NOERROR)
        self.ledger.add(record)
        if question.kind == dns.TYPE_ANY:
            return dns.answer(query, question, dns.REFUSED)
        servers = self.policy.dns_servers or self._name_servers or host_name_servers()
        usable = [server for server in servers if not self.policy.dns_servers or not self._forbidden(server)]
        answer = await resolve(usable, query, question, tcp=tcp)
        if answer is None:
            record.verdict = Verdict.FAILED
            return dns.answer(query, question, dns.SERVFAIL)
        return self._checked(query, question, answer, record)

    def _forbidden(self, server: str) -> bool:
        return self._ground.forbids(ipaddress.ip_address(server))

    def _checked(self, query: bytes, question: dns.Question, answer: bytes, record: EgressRecord) -> bytes:
        """Refuses an answer that points inward (rebinding); remembers what was given out."""
        found = dns.parse_answer(answer, question)
        if any(self._ground.forbids(address) for address in found.addresses):
            record.verdict = Verdict.DENIED_PRIVATE
            return dns.answer(query, question, dns.REFUSED)
        if found.addresses:
            record.address = str(found.addresses[0])
            self._names.learn(question.name, found.addresses, found.ttl_s)
        return answer


def _refuse(client: socket.socket) -> None:
    """Closes with a reset: the program inside learns at once, without a time-out."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    client.close()
