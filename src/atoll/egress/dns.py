"""DNS messages as far as the gateway must understand them (RFC 1035). Pure.

The gateway forwards questions and answers as they are; it only needs the name and type that are asked, the addresses in
an answer, and to make short answers of its own.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from atoll.model.addresses import Address
from atoll.model.network import Network, canonical_name

TYPE_PTR = 12
TYPE_A, TYPE_AAAA, TYPE_HTTPS, TYPE_SVCB, TYPE_ANY = 1, 28, 65, 64, 255
TYPE_OPT, TYPE_AXFR, TYPE_IXFR = 41, 252, 251
CLASS_IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, REFUSED = 0, 1, 2, 3, 5
MAX_UDP = 4096
MAX_ADDRESSES = 32
MAX_RECORDS = 256
"""Of an answer; what it has beyond is cut off (see `Answer.cut_to`)."""
UPSTREAM_UDP = 1232
"""The size of answers that we ask for over UDP: fits any path without fragments."""


class BadMessage(ValueError):
    """Not a DNS message that we would pass on."""


@dataclass(frozen=True, slots=True)
class Question:
    """The one question of a query. `end` is the offset behind it."""

    message_id: int
    name: str
    kind: int
    end: int


def _name(data: bytes, offset: int) -> tuple[str, int]:
    """Name at `offset` (compression followed, loops refused) and the offset behind it."""
    labels: list[str] = []
    behind = -1
    length = 0
    for _ in range(128):
        if offset >= len(data):
            raise BadMessage("name runs out of the message")
        size = data[offset]
        if size == 0:
            return canonical_name(".".join(labels)), behind if behind >= 0 else offset + 1
        if size & 0xC0 == 0xC0:
            if offset + 1 >= len(data):
                raise BadMessage("pointer runs out of the message")
            target = (size & 0x3F) << 8 | data[offset + 1]
            if behind < 0:
                behind = offset + 2
            if target >= offset:
                raise BadMessage("pointer does not point back")
            offset = target
            continue
        if size & 0xC0:
            raise BadMessage("unknown label type")
        label = data[offset + 1 : offset + 1 + size]
        length += size + 1
        if len(label) != size or length > 255 or b"." in label:
            raise BadMessage("bad label")
        labels.append(label.decode("latin-1"))
        offset += 1 + size
    raise BadMessage("too many labels")


def _behind_name(data: bytes, offset: int) -> int:
    """The offset behind the name at `offset`, which is not read."""
    while True:
        if offset >= len(data):
            raise BadMessage("name runs out of the message")
        size = data[offset]
        if size & 0xC0 == 0xC0:
            return offset + 2
        if size & 0xC0:
            raise BadMessage("unknown label type")
        offset += 1 + size
        if size == 0:
            return offset


def reverse_network(name: str) -> Network | None:
    """The addresses that a canonical name below `in-addr.arpa` or `ip6.arpa` is about; None: it is below neither."""
    labels = name.split(".")
    if labels[-2:] not in (["in-addr", "arpa"], ["ip6", "arpa"]):
        return None
    old = labels[-2] == "in-addr"
    base, bits, most = (10, 8, 4) if old else (16, 4, 32)
    parts: list[int] = []
    for label in reversed(labels[:-2]):  # from the root; what is no number below it (RFC 2317) adds nothing
        if len(parts) == most or not label.isascii() or not label.isalnum() or len(label) > 3:
            break
        try:
            parts.append(int(label, base))
        except ValueError:
            break
        if parts[-1] >> bits:
            return None
    number = 0
    for part in parts:
        number = number << bits | part
    number <<= bits * (most - len(parts))
    address = ipaddress.IPv4Address(number) if old else ipaddress.IPv6Address(number)
    return ipaddress.ip_network(f"{address}/{bits * len(parts)}")


def parse_query(data: bytes) -> Question:
    """The question of a standard query. Raises BadMessage."""
    if len(data) < 17 or len(data) > MAX_UDP:
        raise BadMessage("bad length")
    message_id, flags, questions, answers, authorities, _ = struct.unpack_from(">6H", data)
    if flags & 0x8000 or flags & 0x7800 or questions != 1 or answers or authorities:
        raise BadMessage("not a plain query")
    name, offset = _name(data, 12)
    if offset + 4 > len(data):
        raise BadMessage("question runs out of the message")
    if offset - 12 != (len(name) + 2 if name else 1):
        raise BadMessage("the question's name is compressed")  # it would mean something else in a message of our own
    kind, klass = struct.unpack_from(">2H", data, offset)
    if klass != CLASS_IN:
        raise BadMessage("not class IN")
    return Question(message_id, name, kind, offset + 4)


def forward(message_id: bytes, query: bytes, question: Question, *, tcp: bool) -> bytes:
    """The same question in a message of our own: what else the sender put into his does not get out."""
    extended = query[10:12] != b"\0\0" and not tcp
    options = b"" if not extended else b"\0" + struct.pack(">HHIH", TYPE_OPT, UPSTREAM_UDP, 0, 0)
    return message_id + struct.pack(">5H", 0x0100, 1, 0, 0, 1 if options else 0) + query[12 : question.end] + options


def answer(query: bytes, question: Question | None, code: int) -> bytes:
    """A short answer of our own: no records, response code `code`."""
    message_id = query[:2].ljust(2, b"\0")
    recursion = struct.unpack_from(">H", query, 2)[0] & 0x0100 if len(query) >= 4 else 0
    head = message_id + struct.pack(">5H", 0x8080 | recursion | code, 1 if question else 0, 0, 0, 0)
    return head + (query[12 : question.end] if question else b"")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway needs of an upstream's answer. `cut`: it has more records than are looked at."""

    code: int
    addresses: tuple[Address, ...]
    ttl_s: int
    records: int
    end: int
    cut: bool

    def cut_to(self, data: bytes) -> bytes:
        """The message with only the records that were looked at; nothing else may be passed on."""
        if not self.cut:
            return data
        return data[:6] + struct.pack(">3H", self.records, 0, 0) + data[12 : self.end]


def parse_answer(data: bytes, question: Question) -> Answer:
    """Checks that it answers `question`; collects its addresses. Raises BadMessage."""
    if len(data) < 12:
        raise BadMessage("too short")
    _, flags, questions, answers, _, _ = struct.unpack_from(">6H", data)
    if not flags & 0x8000 or questions != 1:
        raise BadMessage("not an answer")
    name, offset = _name(data, 12)
    if offset + 4 > len(data):
        raise BadMessage("question runs out of the message")
    if name != question.name or struct.unpack_from(">H", data, offset)[0] != question.kind:
        raise BadMessage("answers another question")
    offset += 4
    addresses: list[Address] = []
    ttl_s = 3600
    records = 0
    while records < min(answers, MAX_RECORDS) and len(addresses) < MAX_ADDRESSES:
        offset = _behind_name(data, offset)
        if offset + 10 > len(data):
            raise BadMessage("record runs out of the message")
        kind, _, ttl, size = struct.unpack_from(">HHIH", data, offset)
        body = data[offset + 10 : offset + 10 + size]
        if len(body) != size:
            raise BadMessage("record runs out of the message")
        if (kind, size) in ((TYPE_A, 4), (TYPE_AAAA, 16)):
            addresses.append(ipaddress.ip_address(body))
            ttl_s = min(ttl_s, ttl)
        offset += 10 + size
        records += 1
    return Answer(flags & 0xF, tuple(addresses), ttl_s, records, offset, records < answers)
