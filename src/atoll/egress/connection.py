"""One TCP connection out of a sandbox, from accept until both ends are closed.

accepted ─► judged by address ─(only a name can open it, or a rule may apply)─► sniffed ─► judged by name
                                                                │ allowed
             ┌──────────────────────────────────────────────────┘
             ▼
joined:   client ◄═══════════════════════════════► server        bytes as they are
          client ◄══ requests judged one by one ══► server        plain HTTP opened by its name, or under a rule
          client ◄═ TLS of our CA ═ requests ═ TLS ═► server       HTTPS under a rule: the secret is added here
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog

from atoll.egress import dns
from atoll.egress.policy import Verdict, decide_address, decide_name
from atoll.egress.records import EgressRecord
from atoll.egress.relay import Pipe
from atoll.egress.requests import Refused, RequestStream
from atoll.egress.sniff import Beginning, Sniffer, Speech, sniff
from atoll.model.addresses import Address
from atoll.model.network import canonical_name

if TYPE_CHECKING:
    from atoll.egress.gateway import SandboxEgress

SO_ORIGINAL_DST = 80
_CONNECT_S = 10.0
_HANDSHAKE_S = 10.0
_SPEAK_S = 10.0
"""How long a connection that only its name can open may stay silent."""
_QUIET_S = 0.3
"""How long, on a port where the server speaks first, the gateway waits for the client to name itself."""
_WEB_PORTS = frozenset({80, 443})
_MAX_QUESTIONS = 32
_NOTHING = Beginning(Speech.OTHER)
_UNHEARD = Beginning(Speech.UNDECIDED)

log = structlog.get_logger("atoll.gateway")


class Connection:
    """`run` is its task until it is joined; `closed` is set when nothing of it is left."""

    def __init__(self, egress: SandboxEgress, client: socket.socket, source: tuple[str, int]) -> None:
        self._egress = egress
        self._client = client
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._pipes: list[Pipe] = []
        self._open_pipes = 0
        self._counted: tuple[Pipe, Pipe] | None = None
        """(client's side, server's side): whose bytes are those of the record."""
        self._beginning = True
        self._sockets: set[socket.socket] = {client}
        """Those that no transport has taken over yet."""
        self._spoken: str | None = None
        self._address: Address | None = None
        self.record: EgressRecord | None = None
        self.closed = asyncio.Event()

    # -- the beginning -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is joined or refused. Never raises but CancelledError."""
        try:
            await self._open()
        except (OSError, TimeoutError, ssl.SSLError) as error:
            if self.record is not None and self.record.verdict.allowed:
                self.record.verdict = Verdict.FAILED
            log.debug("egress.ended_early", error=str(error))
        except asyncio.CancelledError:
            self.cut()
            raise
        except Exception:
            log.exception("egress.failed")
        finally:
            self._beginning = False
            self._drop_sockets()
            if self._open_pipes == 0:
                self._finish()

    async def _open(self) -> None:
        raw = self._client.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        port, packed = struct.unpack_from(">2xH4s", raw)
        self._address = address = ipaddress.IPv4Address(packed)
        if port == 53:
            await self._serve_questions()
            return
        self.record = record = self._new_record("tcp", str(address), port)
        head, beginning = await self._sniff_if_needed(address, port)
        record.verdict = self._judge(beginning)
        self._egress.ledger.add(record)
        if not record.verdict.allowed:
            return
        headers = self._headers(beginning)
        if beginning.speech is Speech.TLS and headers:
            await self._join_tls(address, port, head, canonical_name(beginning.name or ""))
        else:
            await self._join(address, port, head, beginning, bool(headers))

    def _new_record(self, protocol: str, address: str, port: int) -> EgressRecord:
        return EgressRecord(
            datetime.now(UTC), protocol, self._source[0], self._source[1], address, port, "", Verdict.FAILED
        )

    async def _sniff_if_needed(self, address: Address, port: int) -> tuple[bytes, Beginning]:
        """The first bytes, where the verdict or a rule hangs on them."""
        policy, names = self._egress.policy, self._egress.names.names(address)
        undecided = decide_address(policy, self._egress.forbidden(), address) is None
        if not undecided and not any(policy.has_rule_for(name, port) for name in names):
            return b"", _NOTHING
        head, beginning = await self._listen(_SPEAK_S if port in _WEB_PORTS else _QUIET_S)
        self._spoken = beginning.name
        return head, beginning

    def _judge(self, beginning: Beginning) -> Verdict:
        assert self._address is not None
        assert self.record is not None
        names = self._egress.names.names(self._address)
        self.record.name = canonical_name(beginning.name or "") or min(names, default="")
        return self._verdict()

    def _verdict(self) -> Verdict:
        assert self._address is not None
        assert self.record is not None
        policy = self._egress.policy
        verdict = decide_address(policy, self._egress.forbidden(), self._address)
        if verdict is not None:
            return verdict
        names = self._egress.names.names(self._address)
        return decide_name(policy, self._spoken, names, must_speak=self.record.port in _WEB_PORTS)

    def _headers(self, beginning: Beginning) -> Mapping[str, str]:
        """What a rule adds; only where the address was given out for that very name."""
        scheme = "https" if beginning.speech is Speech.TLS else "http"
        return self._headers_for(beginning.name, scheme) if beginning.name else {}

    def _headers_for(self, name: str, scheme: str) -> Mapping[str, str]:
        assert self._address is not None
        assert self.record is not None
        if canonical_name(name) not in self._egress.names.names(self._address):
            return {}
        return self._egress.policy.headers_for(name, scheme, self.record.port)

    async def _listen(self, patience_s: float) -> tuple[bytes, Beginning]:
        """The connection's first bytes, as many as it takes to know its name."""
        sniffer, beginning = Sniffer(), _UNHEARD
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while beginning.speech is Speech.UNDECIDED:
                    chunk = await self._loop.sock_recv(self._client, 1 << 14)
                    if not chunk:
                        break
                    beginning = sniffer.feed(chunk)
        return bytes(sniffer.data), beginning

    # -- joining -------------------------------------------------------------------------------------------------------

    async def _connect(self, address: Address, port: int) -> socket.socket:
        remote = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._sockets.add(remote)
        async with asyncio.timeout(_CONNECT_S):
            await self._loop.sock_connect(remote, (str(address), port))
        for end in (self._client, remote):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return remote

    async def _join(self, address: Address, port: int, head: bytes, beginning: Beginning, ruled: bool) -> None:
        remote = await self._connect(address, port)
        stream = None
        undecided = decide_address(self._egress.policy, self._egress.forbidden(), address) is None
        if beginning.speech is Speech.HTTP and (ruled or undecided):
            stream = self._requests(None)
        self._counted = inner, outer = self._pair(stream)
        if stream is None and not self._spoken:
            self._overhear(inner)
        await self._adopt(outer, remote)
        await self._adopt(inner, self._client)
        outer.join(inner)
        inner.join(outer, head)

    def _overhear(self, inner: Pipe) -> None:
        """Nothing hangs on the name here, but the record is to have the right one: many names share an address."""

        def first(data: bytes) -> bytes:
            inner.change = None
            name = sniff(data).name
            if name is not None and self.record is not None:
                self.record.name = canonical_name(name)
            return data

        inner.change = first

    async def _join_tls(self, address: Address, port: int, head: bytes, name: str) -> None:
        """Terminates the client's TLS. The server's certificate is checked first, by the host, for the same name."""
        assert self.record is not None
        tls = self._egress.tls
        remote = await self._connect(address, port)
        clear, outer = self._pair(self._requests(name))
        await self._adopt(outer, remote, tls.client_context, name)
        # A socket pair in between lets the event loop's own TLS work on bytes that were read already.
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._sockets |= {near, far}
        secret, wire = self._pair(None)
        self._counted = secret, outer
        await self._adopt(wire, near)
        await self._adopt(secret, self._client)
        wire.join(secret)
        secret.join(wire, head)
        await self._accept_tls(clear, far, tls.server_context(name))
        outer.join(clear)
        clear.join(outer)
        self.record.rewritten = True

    def _requests(self, only: str | None) -> RequestStream:
        """`only`: the one name that the TLS around it was opened for."""

        def judge(name: str | None) -> Mapping[str, str] | None:
            assert self._address is not None
            if only is not None and (name is None or canonical_name(name) != only):
                return None
            policy, names = self._egress.policy, self._egress.names.names(self._address)
            verdict = decide_address(policy, self._egress.forbidden(), self._address)
            if verdict is None:
                verdict = decide_name(policy, name, names, must_speak=True)
            if not verdict.allowed:
                return None
            headers = self._headers_for(name, "https" if only else "http") if name is not None else {}
            if headers and self.record is not None:
                self.record.rewritten = True
            return headers

        return RequestStream(judge)

    def _pair(self, stream: RequestStream | None) -> tuple[Pipe, Pipe]:
        """(the client's side, the server's side), not joined yet."""

        def outward(data: bytes) -> bytes | None:
            assert stream is not None
            try:
                return stream.feed(data)
            except Refused as error:
                log.debug("egress.request_refused", reason=str(error))
                if self.record is not None:
                    self.record.verdict = Verdict.DENIED_NAME
                return None

        def inward(data: bytes) -> bytes:
            assert stream is not None
            stream.answered(data)
            return data

        spend = self._egress.traffic.spend
        inner = Pipe(self._pipe_closed, outward if stream else None, spend)
        outer = Pipe(self._pipe_closed, inward if stream else None, spend)
        return inner, outer

    async def _adopt(
        self, pipe: Pipe, end: socket.socket, context: ssl.SSLContext | None = None, name: str | None = None
    ) -> None:
        """Makes a transport of a socket; from then on the pipe owns it. With `context`: TLS to the server `name`."""
        patience = _HANDSHAKE_S if context else None
        with self._taken(pipe, end):
            if end.family == socket.AF_UNIX:
                await self._loop.create_unix_connection(lambda: pipe, sock=end)
            else:
                await self._loop.create_connection(
                    lambda: pipe, sock=end, ssl=context, server_hostname=name, ssl_handshake_timeout=patience
                )

    async def _accept_tls(self, pipe: Pipe, end: socket.socket, context: ssl.SSLContext) -> None:
        with self._taken(pipe, end):
            await self._loop.connect_accepted_socket(lambda: pipe, end, ssl=context, ssl_handshake_timeout=_HANDSHAKE_S)

    @contextlib.contextmanager
    def _taken(self, pipe: Pipe, end: socket.socket) -> Iterator[None]:
        self._sockets.discard(end)
        self._pipes.append(pipe)
        self._open_pipes += 1
        try:
            yield
        except BaseException:
            if pipe.transport is None:  # it never began, so it will never say that it ended; the loop closes its socket
                self._open_pipes -= 1
                self._pipes.remove(pipe)
            self.cut()
            raise

    # -- the end -------------------------------------------------------------------------------------------------------

    def count(self) -> None:
        """Brings the record's byte counts up to date."""
        if self.record is not None and self._counted is not None:
            self.record.bytes_out, self.record.bytes_in = (end.received for end in self._counted)

    def review(self) -> None:
        """After a change of policy: what it would not have opened is cut."""
        if self.record is None or not self.record.verdict.allowed or self.closed.is_set():
            return
        verdict = self._verdict()
        if not verdict.allowed:
            self.record.verdict = verdict
            self.cut()

    def cut(self) -> None:
        """Ends it at once, with a reset."""
        for pipe in self._pipes:
            pipe.abort()
        self._drop_sockets()

    def settle(self) -> None:
        """For an owner that cancelled `run`, which may not even have begun."""
        self._beginning = False
        self.cut()
        if self._open_pipes == 0:
            self._finish()

    def _drop_sockets(self) -> None:
        for end in self._sockets:
            # A reset: the program inside learns at once, without a time-out.
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            end.close()
        self._sockets.clear()

    def _pipe_closed(self) -> None:
        self._open_pipes -= 1
        if self._open_pipes == 0 and not self._beginning:
            self._finish()

    def _finish(self) -> None:
        self.count()
        if self.record is not None:
            self.record.closed_at = self.record.closed_at or datetime.now(UTC)
        if not self.closed.is_set():
            self.closed.set()
            self._egress.connection_closed(self)

    # -- DNS over TCP --------------------------------------------------------------------------------------------------

    async def _serve_questions(self) -> None:
        """RFC 7766: the same decisions as over UDP; a few questions per connection, whatever address was meant."""
        pending = b""
        async with asyncio.timeout(_SPEAK_S):
            for _ in range(_MAX_QUESTIONS):
                while len(pending) < 2 or len(pending) < 2 + int.from_bytes(pending[:2], "big"):
                    chunk = await self._loop.sock_recv(self._client, 1 << 12)
                    if not chunk or len(pending) > dns.MAX_UDP:
                        return
                    pending += chunk
                size = int.from_bytes(pending[:2], "big")
                query, pending = pending[2 : 2 + size], pending[2 + size :]
                await self._egress.turn_to_ask()
                record = self._new_record("dns", "", 53)
                answer = await self._egress.lookups.answer(query, record, tcp=True)
                if answer is None:
                    return
                await self._loop.sock_sendall(self._client, struct.pack(">H", len(answer)) + answer)
            self._client.shutdown(socket.SHUT_WR)
            while await self._loop.sock_recv(self._client, 1 << 12):
                pass  # a reset now would overtake the last answers
