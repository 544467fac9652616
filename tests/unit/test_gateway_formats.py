"""The formats that the gateway reads: TLS ClientHello, HTTP heads, DNS messages; hostile bytes do no harm."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.egress import dns
from atoll.egress.names import AnsweredNames
from atoll.egress.sniff import Speech, sniff
from support.raising import raised


def client_hello(name: str | None) -> bytes:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_the_name_of_a_real_client_hello_is_found_only_when_it_is_complete() -> None:
    hello = client_hello("api.example.com")
    assert sniff(hello).name == "api.example.com"
    for cut in (1, 5, 40, len(hello) - 1):
        assert sniff(hello[:cut]).speech is Speech.UNDECIDED


def test_a_client_hello_cut_into_many_records_is_read() -> None:
    hello = client_hello("api.example.com")[5:]
    records = b"".join(
        b"\x16\x03\x01" + struct.pack(">H", len(hello[i : i + 7])) + hello[i : i + 7] for i in range(0, len(hello), 7)
    )
    assert sniff(records).name == "api.example.com"


def test_a_client_hello_without_a_name_is_tls_without_a_name() -> None:
    beginning = sniff(client_hello(None))
    assert (beginning.speech, beginning.name) == (Speech.TLS, None)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", "example.com"),
        (b"GET / HTTP/1.1\r\nA: b\r\nhOsT:example.com:8080\r\n\r\n", "example.com"),
        (b"GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n", None),
        (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", None),
        (b"GET / HTTP/1.0\r\n\r\n", None),
    ],
)
def test_the_host_of_an_http_request_is_found(head: bytes, name: str | None) -> None:
    assert sniff(head) == type(sniff(head))(Speech.HTTP, name)


def test_ssh_and_friends_are_other_and_a_begun_method_waits() -> None:
    assert sniff(b"SSH-2.0-x\r\n").speech is Speech.OTHER
    assert sniff(b"\x00\x01").speech is Speech.OTHER
    assert sniff(b"POS").speech is Speech.UNDECIDED


@given(st.binary(max_size=600))
def test_hostile_beginnings_never_raise(data: bytes) -> None:
    for begun in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c"):
        assert raised(sniff, begun + data) is None


def query(name: str, kind: int = dns.TYPE_A) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    return struct.pack(">6H", 0x1234, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">2H", kind, 1)


def test_a_query_and_its_answer_are_understood() -> None:
    ask = query("www.Example.com")
    question = dns.parse_query(ask)
    assert (question.name, question.kind, question.message_id) == ("www.example.com", dns.TYPE_A, 0x1234)
    record = b"\xc0\x0c" + struct.pack(">HHIH", dns.TYPE_A, 1, 60, 4) + bytes([1, 2, 3, 4])
    reply = struct.pack(">6H", 0x1234, 0x8180, 1, 1, 0, 0) + ask[12:] + record
    answer = dns.parse_answer(reply, question)
    assert answer.addresses == (ipaddress.ip_address("1.2.3.4"),)
    assert answer.ttl_s == 60
    refused = dns.answer(ask, question, dns.REFUSED)
    assert dns.parse_answer(refused, question).code == dns.REFUSED


def test_an_answer_to_another_question_is_refused() -> None:
    question = dns.parse_query(query("a.test"))
    other = query("b.test")
    with pytest.raises(dns.BadMessage):
        dns.parse_answer(struct.pack(">6H", 0x1234, 0x8180, 1, 0, 0, 0) + other[12:], question)


@given(st.binary(max_size=300))
def test_hostile_dns_messages_raise_only_bad_message(data: bytes) -> None:
    head = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0)
    for message in (data, head + data):
        assert raised(dns.parse_query, message) in (None, dns.BadMessage)
    question = dns.parse_query(query("a.test"))
    begun = struct.pack(">6H", 1, 0x8180, 1, 3, 0, 0) + query("a.test")[12:]
    for message in (data, begun + data):
        assert raised(dns.parse_answer, message, question) in (None, dns.BadMessage)


def test_only_the_question_itself_goes_upstream() -> None:
    ask = query("www.Example.com")
    smuggled = ask[:10] + b"\0\x01" + ask[12:] + b"\0" + struct.pack(">HHIH", 41, 4096, 0, 8) + b"\0\x0a\0\x04data"
    question = dns.parse_query(smuggled)
    sent = dns.forward(b"ab", smuggled, question, tcp=False)
    assert b"data" not in sent
    assert sent[12 : 12 + len(ask) - 12] == ask[12:], "spelled as it was, for those who compare"
    assert dns.parse_query(sent).name == "www.example.com"


def test_a_question_whose_name_is_a_pointer_is_refused() -> None:
    with pytest.raises(dns.BadMessage):
        dns.parse_query(
            struct.pack(">6H", 0x0161, 0x0100, 1, 0, 0, 0) + b"\xc0\x04" + struct.pack(">2H", 1, 1) + b"\0" * 4
        )


def test_answered_names_end_and_are_bounded() -> None:
    now = [0.0]
    names = AnsweredNames(lambda: now[0])
    address = ipaddress.ip_address("1.2.3.4")
    names.learn("a.test", (address,), 60)
    names.learn("b.test", (address,), 7200)
    assert names.names(address) == {"a.test", "b.test"}
    now[0] = 3600 + 61
    assert names.names(address) == {"b.test"}
    now[0] = 20_000
    assert names.names(address) == frozenset()


def records(question: bytes, body: bytes, count: int, *, begin: bytes = b"\xc0\x0c", kind: int = dns.TYPE_A) -> bytes:
    one = begin + struct.pack(">HHIH", kind, 1, 60, len(body)) + body
    return struct.pack(">6H", 0x1234, 0x8180, 1, count, 0, 0) + question[12:] + one * count


def test_an_answer_of_many_addresses_is_cut_to_those_that_were_looked_at() -> None:
    ask = query("many.test")
    question = dns.parse_query(ask)
    few = records(ask, bytes([1, 2, 3, 4]), 32)
    assert dns.parse_answer(few, question).cut_to(few) == few
    hidden = bytes([10, 0, 0, 1])
    many = records(ask, bytes([1, 2, 3, 4]), 33)[:-4] + hidden
    found = dns.parse_answer(many, question)
    assert len(found.addresses) == dns.MAX_ADDRESSES
    cut = found.cut_to(many)
    assert hidden not in cut, "an address that was not judged may not be given out"
    assert dns.parse_answer(cut, question).addresses == found.addresses
    assert not dns.parse_answer(cut, question).cut


def test_an_address_has_a_bounded_number_of_names_the_newest() -> None:
    names = AnsweredNames(lambda: 0.0)
    address = ipaddress.ip_address("1.2.3.4")
    for number in range(1000):
        names.learn(f"{number}.test", (address,), 60)
    assert names.names(address) == {f"{number}.test" for number in range(1000 - 64, 1000)}


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("4.3.2.1.in-addr.arpa", "1.2.3.4/32"),
        ("10.in-addr.arpa", "10.0.0.0/8"),
        ("in-addr.arpa", "0.0.0.0/0"),
        ("0-31.3.2.1.in-addr.arpa", "1.2.3.0/24"),
        ("_dns-sd._udp.168.192.in-addr.arpa", "192.168.0.0/16"),
        ("8.b.d.0.1.0.0.2.ip6.arpa", "2001:db8::/32"),
        ("999.1.in-addr.arpa", None),
        ("example.com", None),
    ],
)
def test_what_a_reverse_name_is_about(name: str, network: str | None) -> None:
    found = dns.reverse_network(name)
    assert (str(found) if found is not None else None) == network


@given(st.text(alphabet="0123456789abcdefx-.", max_size=80))
def test_any_reverse_name_is_understood_or_is_none(name: str) -> None:
    for zone in ("in-addr.arpa", "ip6.arpa"):
        assert raised(dns.reverse_network, f"{name}.{zone}") is None
