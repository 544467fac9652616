"""Questions that would show the operator's own network are refused before anybody is asked."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from atoll.egress import dns, lookups
from atoll.egress.budget import Pace
from atoll.egress.lookups import Lookups
from atoll.egress.names import AnsweredNames
from atoll.egress.policy import EgressPolicy, Verdict
from atoll.egress.records import EgressRecord, Ledger
from atoll.model.addresses import ForbiddenNetworks

HOST = ForbiddenNetworks(frozenset({ipaddress.ip_address("198.51.100.2")}))
OPENED = ForbiddenNetworks(private_allowed=(ipaddress.ip_network("10.0.0.0/8"),))
TXT, SRV = 16, 33


def query(name: str, kind: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    return struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">2H", kind, 1)


Ask = Callable[..., object]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that went upstream."""
    seen: list[str] = []

    async def resolve(servers: object, query: bytes, question: dns.Question, *, tcp: bool = False) -> bytes:
        seen.append(question.name)
        return dns.answer(query, question, dns.NOERROR)

    monkeypatch.setattr(lookups, "resolve", resolve)
    monkeypatch.setattr(lookups, "search_domains", lambda: ("office.example",))
    return seen


async def verdict(name: str, kind: int, forbidden: ForbiddenNetworks = HOST, own: tuple[str, ...] | None = None) -> str:
    ledger = Ledger()
    made = Lookups(EgressPolicy, lambda: forbidden, AnsweredNames(lambda: 0.0), ledger, own)
    record = EgressRecord(datetime.now(UTC), "dns", "", 0, "", 53, "", Verdict.FAILED)
    answer = await made.answer(query(name, kind), record, tcp=False)
    assert answer is not None
    return "refused" if answer[3] & 15 == dns.REFUSED else "asked"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("1.0.0.10.in-addr.arpa", dns.TYPE_PTR),
        ("2.100.51.198.in-addr.arpa", dns.TYPE_PTR),
        ("254.169.254.169.in-addr.arpa", dns.TYPE_PTR),
        ("168.192.in-addr.arpa", TXT),
        ("b._dns-sd._udp.0.0.10.in-addr.arpa", dns.TYPE_PTR),
        ("_ldap._tcp.dc._msdcs.corp", SRV),
        ("_kerberos._udp.office.example", SRV),
        ("office.example", TXT),
        ("secrets.internal", TXT),
    ],
)
async def test_the_operators_own_zones_are_not_asked_about(asked: list[str], name: str, kind: int) -> None:
    assert await verdict(name, kind) == "refused"
    assert asked == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("8.8.8.8.in-addr.arpa", dns.TYPE_PTR),
        ("_xmpp._tcp.example.com", SRV),
        ("notoffice.example", TXT),
        ("office.example", dns.TYPE_A),
        ("in-addr.arpa", TXT),
    ],
)
async def test_what_is_public_is_asked(asked: list[str], name: str, kind: int) -> None:
    assert await verdict(name, kind) == "asked"
    assert asked == [name]


async def test_an_operator_who_opened_networks_or_named_servers_gets_their_names(asked: list[str]) -> None:
    assert await verdict("1.0.0.10.in-addr.arpa", dns.TYPE_PTR, OPENED) == "asked"
    assert await verdict("_ldap._tcp.corp", SRV, OPENED) == "asked"
    assert await verdict("office.example", TXT, own=("203.0.113.53",)) == "asked", "public servers know no such zone"
    assert await verdict("1.1.168.192.in-addr.arpa", dns.TYPE_PTR, OPENED) == "refused"


def test_a_pace_gives_what_it_has_not_yet_later_and_later() -> None:
    now = [0.0]
    pace = Pace(10.0, 2, lambda: now[0])
    assert [pace.take() for _ in range(4)] == [0.0, 0.0, 0.1, 0.2]
    assert not pace.go(), "those that wait for the other kind count too"
    now[0] = 0.5
    assert pace.go()
