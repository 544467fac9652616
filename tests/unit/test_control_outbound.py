"""Where a webhook may be sent, and what comes of it: addresses are decided on, names are not believed."""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.control.events import outbound
from atoll.control.events.outbound import NoAnswer, Outbound, is_allowed, parse_networks, parse_target
from atoll.control.events.retries import DELAYS_S, MAX_ATTEMPTS, delay_after
from atoll.model.addresses import ForbiddenNetworks
from atoll.model.errors import Forbidden, InvalidRequest
from support.receiver import LOOPBACK, opened, receiver

FORBIDDEN = [
    *("127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1"),
    *("255.255.255.255", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:a01:203::", "::7f00:1"),
]


@pytest.mark.parametrize("address", FORBIDDEN)
def test_an_address_that_is_not_public_is_refused_unless_it_is_allowed(address: str) -> None:
    parsed = ipaddress.ip_address(address)
    assert not is_allowed(parsed, ForbiddenNetworks())
    plain = getattr(parsed, "ipv4_mapped", None) or getattr(parsed, "sixtofour", None) or parsed
    assert is_allowed(parsed, ForbiddenNetworks(private_allowed=parse_networks([str(plain)])))


@pytest.mark.parametrize("address", ["1.1.1.1", "8.8.8.8", "2606:4700::1111"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_allowed(ipaddress.ip_address(address), ForbiddenNetworks())


def test_this_machines_own_addresses_are_refused_public_as_they_are_unless_they_stand_there_alone() -> None:
    own = ipaddress.ip_address("1.1.1.1")
    assert not is_allowed(own, ForbiddenNetworks(frozenset({own})))
    by_range, by_address = (parse_networks([text]) for text in ("1.1.0.0/16", "1.1.1.1/32"))
    assert not is_allowed(own, ForbiddenNetworks(frozenset({own}), by_range))
    assert is_allowed(own, ForbiddenNetworks(frozenset({own}), by_address))
    assert is_allowed(ipaddress.ip_address("1.1.1.2"), ForbiddenNetworks(frozenset({own}))), "the control"


async def test_name_servers_that_never_answer_hold_up_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    release, asked = threading.Event(), []

    def never(host: str, port: int) -> list[str]:
        asked.append(host)
        release.wait(30)
        raise OSError("no answer")

    monkeypatch.setattr(outbound, "addresses_of", never)
    out = Outbound(timeout_s=0.2)
    urls = [f"http://dead{number % 20}.example/" for number in range(100)]
    results = await asyncio.gather(*(out.post(url, {}, b"") for url in urls), return_exceptions=True)
    assert all(isinstance(result, NoAnswer) for result in results)
    assert sorted(set(asked)) == sorted(asked), "one thread for a name"
    assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 10) == "free"
    out.close()
    release.set()


BAD_URLS = [
    "",
    "ftp://example.com/",
    "example.com",
    "http://",
    "http:///path",
    "http://user:secret@example.com/",
    "http://example.com:0/",
    "http://example.com:99999/",
    "http://exa mple.com/",
    "http://example.com/\r\nx: y",
    "http://[::1/",
    "file:///etc/passwd",
    "http://" + "a" * 3000,
    "http://" + "a" * 300 + ".com/",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_is_no_webhooks_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_target(url)


@given(st.text(max_size=60).map(lambda rest: "http://h" + rest))
def test_no_url_puts_a_line_break_into_the_request(url: str) -> None:
    try:
        target = parse_target(url)
    except InvalidRequest:
        return
    line = target.resource + target.authority
    assert line.isascii()
    assert not any(character.isspace() for character in line)


def test_a_literal_address_is_refused_as_soon_as_it_is_named() -> None:
    for url in (
        "http://127.0.0.1:3000/sandboxes",
        "http://169.254.169.254/latest",
        "http://[::1]/",
        "https://10.0.0.1/",
    ):
        with pytest.raises(Forbidden, match="ATOLL_WEBHOOK_ALLOW_PRIVATE"):
            Outbound().check(url)
    Outbound(opened(LOOPBACK)).check("http://127.0.0.1:3000/")
    Outbound().check("http://example.com/")


@pytest.mark.parametrize("url", ["http://localhost:{port}/", "http://127.1:{port}/", "http://0x7f000001:{port}/"])
async def test_a_name_that_leads_inside_is_refused_and_nothing_is_sent(url: str) -> None:
    async with receiver() as inside:
        port = inside.url.split(":")[2].split("/")[0]
        with pytest.raises((Forbidden, NoAnswer)):
            await Outbound().post(url.format(port=port), {}, b"{}")
        assert inside.received == []
        # The same gets through where the operator allows it.
        allowed = Outbound(opened([*LOOPBACK, "::1/128"]))
        if "localhost" in url:
            assert await allowed.post(url.format(port=port), {}, b"{}") == 200


async def test_a_name_with_one_bad_address_among_good_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "addresses_of", lambda host, port: ["1.1.1.1", "127.0.0.1"])
    with pytest.raises(Forbidden):
        await Outbound().post("http://rebinding.example/", {}, b"")


async def test_what_is_sent_is_what_was_given_and_redirects_are_not_followed() -> None:
    async with receiver(302) as target:
        out = Outbound(opened(LOOPBACK))
        assert await out.post(target.url, {"x-test": "1"}, b'{"a":1}') == 302
        (headers, body), *more = target.received
        assert more == []
        assert headers[":line"] == "POST /hook?a=b HTTP/1.1"
        assert (headers["x-test"], body) == ("1", b'{"a":1}')


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\r\n", b"HTTP/1.1 200", b"x" * 100_000, b"HTTP/1.1 100 C\r\n\r\n" * 50]
)
async def test_an_answer_that_is_none_is_told_as_such(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NoAnswer):
            await Outbound(opened(LOOPBACK)).post(f"http://127.0.0.1:{port}/", {}, b"{}")


async def test_a_receiver_that_says_nothing_is_left_after_a_while() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NoAnswer, match="within"):
            await Outbound(opened(LOOPBACK), timeout_s=0.2).post(f"http://127.0.0.1:{port}/", {}, b"{}")


def test_the_schedule_backs_off_and_ends() -> None:
    waits = [delay_after(attempt, 0.0) for attempt in range(1, MAX_ATTEMPTS)]
    assert [wait.total_seconds() for wait in waits if wait is not None] == list(DELAYS_S)
    assert all(one < other for one, other in pairwise(DELAYS_S))
    assert delay_after(MAX_ATTEMPTS, 0.0) is None
    assert delay_after(0, 0.0) is None
    spread = delay_after(1, 1.0)
    assert spread is not None
    assert DELAYS_S[0] < spread.total_seconds() <= DELAYS_S[0] * 1.2
