"""Heads in and out: what is refused, what is passed on, how bodies are framed."""

from __future__ import annotations

import pytest

from atoll.edge.head import (
    BadHead,
    Headers,
    RequestHead,
    downstream_head,
    read_request,
    read_response,
    switching_head,
    upstream_head,
)


def request(
    *fields: tuple[bytes, bytes], method: bytes = b"GET", target: bytes = b"/", version: str = "1.1"
) -> RequestHead:
    return read_request(method, target, version, [(b"host", b"x"), *fields], keep_alive=True)


def sent(head: RequestHead, *, forwarded: bool = True) -> bytes:
    return upstream_head(head, host=head.host, client_ip=b"10.1.1.1", forwarded=forwarded)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(b"content-length", b"1"), (b"transfer-encoding", b"chunked")], 400),
        ([(b"content-length", b"1"), (b"content-length", b"1")], 400),
        ([(b"content-length", b"1,1")], 400),
        ([(b"content-length", b"")], 400),
        ([(b"content-length", b"9" * 19)], 400),
        ([(b"transfer-encoding", b"gzip, chunked")], 501),
        ([(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")], 400),
        ([(b"host", b"y")], 400),
        ([(b"expect", b"tea")], 417),
    ],
)
def test_an_ambiguous_request_is_refused(fields: Headers, status: int) -> None:
    with pytest.raises(BadHead) as refusal:
        request(*fields, method=b"POST")
    assert refusal.value.status == status


def test_transfer_codings_do_not_exist_in_http_10() -> None:
    with pytest.raises(BadHead):
        request((b"transfer-encoding", b"chunked"), version="1.0")


@pytest.mark.parametrize(
    ("target", "expected", "host"),
    [
        (b"/a?b", b"/a?b", b"x"),
        (b"http://y:1/a?b", b"/a?b", b"y:1"),
        (b"HTTP://y", b"/", b"y"),
        (b"http://y?q", b"/?q", b"y"),
    ],
)
def test_targets_leave_in_origin_form(target: bytes, expected: bytes, host: bytes) -> None:
    head = request(target=target)
    assert (head.target, head.host) == (expected, host)


@pytest.mark.parametrize("target", [b"*", b"a", b"ftp://y/", b"", b"://", b"javascript://x"])
def test_other_targets_are_refused(target: bytes) -> None:
    with pytest.raises(BadHead):
        request(target=target)


def test_a_guests_own_server_gets_no_cookies() -> None:
    head = request((b"cookie", b"session=x"), (b"accept", b"y"))
    assert b"session" not in sent(head, forwarded=False)
    assert b"accept: y" in sent(head, forwarded=False)
    assert b"cookie: session=x" in sent(head)


def test_connection_fields_do_not_travel() -> None:
    head = request(
        (b"connection", b"keep-alive, X-Mine"),
        (b"x-mine", b"1"),
        (b"te", b"trailers"),
        (b"upgrade", b"h2c"),
        (b"x-kept", b"2"),
        (b"e2b-traffic-access-token", b"secret"),
    )
    assert sent(head, forwarded=False) == b"GET / HTTP/1.1\r\nhost: x\r\nx-kept: 2\r\n\r\n"


def test_forwarded_fields_append_the_client_and_replace_the_rest() -> None:
    head = request((b"x-forwarded-for", b"1.2.3.4"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-host", b"evil"))
    assert sent(head) == (
        b"GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 1.2.3.4, 10.1.1.1\r\nx-forwarded-host: x\r\n"
        b"x-forwarded-proto: http\r\n\r\n"
    )


def test_the_framing_of_a_request_is_written_anew() -> None:
    assert b"\r\ncontent-length: 7\r\n" in sent(request((b"content-length", b"007"), method=b"POST"))
    assert b"\r\ntransfer-encoding: chunked\r\n" in sent(request((b"transfer-encoding", b"Chunked"), method=b"POST"))


def test_only_an_upgrade_without_body_is_passed_on() -> None:
    upgrade = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
    assert sent(request(*upgrade), forwarded=False).endswith(b"connection: upgrade\r\nupgrade: websocket\r\n\r\n")
    assert request(*upgrade, (b"content-length", b"3")).upgrade == b""
    assert request((b"upgrade", b"websocket")).upgrade == b""


def answer(
    *fields: tuple[bytes, bytes], status: int = 200, to: RequestHead | None = None, keep_alive: bool = True
) -> bytes:
    to = to or request()
    return downstream_head(to, read_response(to, status, b"OK", list(fields)), keep_alive=keep_alive)


def test_an_answer_of_unknown_length_goes_out_chunked_or_until_close() -> None:
    assert b"transfer-encoding: chunked" in answer()
    assert b"transfer-encoding" not in answer(to=request(version="1.0"), keep_alive=False)
    assert b"connection: close" in answer(keep_alive=False)


def test_answers_without_body_announce_none() -> None:
    assert answer(status=204) == b"HTTP/1.1 204 OK\r\n\r\n"
    assert answer((b"content-length", b"5"), status=204) == b"HTTP/1.1 204 OK\r\n\r\n"
    assert b"content-length: 5\r\n" in answer((b"content-length", b"5"), status=304)
    head = request(method=b"HEAD")
    assert b"content-length: 5\r\n" in answer((b"content-length", b"5"), to=head)
    assert b"transfer-encoding" not in answer(to=head)


@pytest.mark.parametrize(
    "fields",
    [
        [(b"content-length", b"1"), (b"content-length", b"2")],
        [(b"content-length", b"1"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"x")],
        [(b"transfer-encoding", b"gzip")],
    ],
)
def test_an_ambiguous_answer_is_refused(fields: Headers) -> None:
    with pytest.raises(BadHead) as refusal:
        read_response(request(), 200, b"OK", fields)
    assert refusal.value.status == 502


def test_a_switch_of_protocols_keeps_what_makes_it_one() -> None:
    response = read_response(
        request(), 101, b"", [(b"upgrade", b"websocket"), (b"connection", b"Upgrade"), (b"sec-websocket-accept", b"k")]
    )
    assert switching_head(response) == (
        b"HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: k\r\nconnection: upgrade\r\n"
        b"upgrade: websocket\r\n\r\n"
    )
