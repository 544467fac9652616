"""The Connect protocol: framing, codes, errors in the protocol's own form, also for what no SDK would send."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator

import pytest
from connectrpc.code import Code as TheirCode

from atoll.http1.server import Body, Headers, Request, Response
from atoll.wire.envd import connect
from atoll.wire.envd.connect import (
    HTTP_STATUS,
    Call,
    Code,
    ConnectError,
    Service,
    end_of_stream,
    envelope,
    parse_timeout_ms,
    read_envelopes,
)
from atoll.wire.envd.process import (
    ConnectRequest,
    DataEvent,
    ListRequest,
    ListResponse,
    ProcessInfo,
    StreamInputResponse,
)


async def _list(request: ListRequest, call: Call) -> ListResponse:
    if call.headers.get("x-wait"):
        await asyncio.sleep(3600)
    if call.headers.get("x-fail"):
        raise RuntimeError("secret detail")
    return ListResponse(processes=[ProcessInfo(pid=7)])


async def _count(request: ConnectRequest, call: Call) -> AsyncIterator[DataEvent]:
    yield DataEvent(stdout=b"1")
    if call.headers.get("x-wait"):
        await asyncio.sleep(3600)
    if call.headers.get("x-fail"):
        raise ConnectError(Code.NOT_FOUND, "it is gone")
    yield DataEvent(stdout=b"2")


async def _sum(requests: AsyncIterator[DataEvent], call: Call) -> DataEvent:
    return DataEvent(stdout=b"".join([each.stdout or b"" async for each in requests]))


SERVICE = Service("test.Test")
SERVICE.unary("List", ListRequest, _list)
SERVICE.server_stream("Count", ConnectRequest, _count)
SERVICE.client_stream("Sum", DataEvent, _sum)


def body_of(*chunks: bytes) -> Body:
    body = Body(None, None)
    for chunk in chunks:
        body.feed(chunk)
    body.end()
    return body


async def call(
    method: str, body: Body | bytes, content_type: str, http_method: str = "POST", **headers: str
) -> Response:
    pairs = [("content-type", content_type), *((name.replace("_", "-"), value) for name, value in headers.items())]
    given = body if isinstance(body, Body) else Body.of(body)
    path = f"/test.Test/{method}"
    return await SERVICE.routes[path](Request(http_method, path, path, {}, Headers(pairs), given))


async def content(response: Response) -> bytes:
    if isinstance(response.body, bytes):
        return response.body
    assert isinstance(response.body, AsyncIterator)
    return b"".join([chunk async for chunk in response.body])


def envelopes(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while data:
        flags, size = struct.unpack_from(">BI", data)
        found.append((flags, data[5 : 5 + size]))
        data = data[5 + size :]
    return found


def error_of(data: bytes) -> dict[str, str]:
    flags, payload = envelopes(data)[-1]
    assert flags == 2
    error: dict[str, str] = json.loads(payload)["error"]
    return error


def test_every_code_of_the_protocol_has_its_http_status() -> None:
    assert {code.value for code in Code} == {code.value for code in TheirCode}
    assert set(HTTP_STATUS) == set(Code)


async def test_unary_answers_in_the_codec_it_was_asked_in() -> None:
    answer = await call("List", b"{}", "application/json; charset=utf-8", content_encoding="identity")
    assert (answer.status, await content(answer)) == (200, b'{"processes":[{"pid":7}]}')
    assert dict(answer.headers)["content-type"] == "application/json"
    answer = await call("List", b"", "application/proto")
    assert (answer.status, await content(answer)) == (200, ListResponse(processes=[ProcessInfo(pid=7)]).to_binary())
    assert dict(answer.headers)["content-type"] == "application/proto"


@pytest.mark.parametrize(
    ("body", "content_type", "headers", "status", "code"),
    [
        (b"{", "application/json", {}, 400, "invalid_argument"),
        (b"\xff\xfe", "application/json", {}, 400, "invalid_argument"),
        (b"[]", "application/json", {}, 400, "invalid_argument"),
        (b"\x0a\xff", "application/proto", {}, 400, "invalid_argument"),
        (b"{}", "application/json", {"content_encoding": "gzip"}, 501, "unimplemented"),
        (b"{}", "application/json", {"connect_protocol_version": "2"}, 400, "invalid_argument"),
        (b"{}", "application/json", {"connect_timeout_ms": "soon"}, 400, "invalid_argument"),
        (b"{}", "application/json", {"connect_timeout_ms": "10", "x_wait": "1"}, 504, "deadline_exceeded"),
        (b"{}", "application/json", {"x_fail": "1"}, 500, "internal"),
    ],
)
async def test_a_unary_error_has_its_status_and_code(
    body: bytes, content_type: str, headers: dict[str, str], status: int, code: str
) -> None:
    answer = await call("List", body, content_type, **headers)
    error = json.loads(await content(answer))
    assert (answer.status, error["code"]) == (status, code)
    assert "secret" not in error["message"]


async def test_a_unary_body_above_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "MAX_MESSAGE", 1000)
    answer = await call("List", b"{" + b" " * 2000 + b"}", "application/json")
    assert (answer.status, json.loads(await content(answer))["code"]) == (429, "resource_exhausted")


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/json+x", "application/connect+json"])
async def test_a_unary_call_of_another_content_type_is_415(content_type: str) -> None:
    answer = await call("List", b"{}", content_type)
    assert answer.status == 415
    assert "application/json" in dict(answer.headers)["accept-post"]


async def test_another_http_method_is_405() -> None:
    assert (await call("List", b"", "application/json", "GET")).status == 405


async def test_a_server_stream_ends_with_an_empty_end_envelope() -> None:
    answer = await call("Count", envelope(b"{}"), "application/connect+json")
    assert dict(answer.headers)["content-type"] == "application/connect+json"
    assert envelopes(await content(answer)) == [(0, b'{"stdout":"MQ=="}'), (0, b'{"stdout":"Mg=="}'), (2, b"{}")]


async def test_a_server_stream_speaks_binary() -> None:
    answer = await call("Count", envelope(b""), "application/connect+proto")
    assert envelopes(await content(answer))[0] == (0, DataEvent(stdout=b"1").to_binary())


async def test_an_error_in_a_stream_comes_after_what_was_sent() -> None:
    answer = await call("Count", envelope(b"{}"), "application/connect+json", x_fail="1")
    data = await content(answer)
    assert answer.status == 200
    assert envelopes(data)[0] == (0, b'{"stdout":"MQ=="}')
    assert error_of(data) == {"code": "not_found", "message": "it is gone"}


async def test_the_deadline_of_a_stream_ends_it_with_an_error() -> None:
    answer = await call("Count", envelope(b"{}"), "application/connect+json", x_wait="1", connect_timeout_ms="20")
    assert error_of(await content(answer))["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "unimplemented"),
        (envelope(b"{}") * 2, "unimplemented"),
        (envelope(b"{}")[:-1], "invalid_argument"),
        (b"\x00\x00", "invalid_argument"),
        (b"\x01" + envelope(b"{}")[1:], "internal"),
        (b"\x40" + envelope(b"{}")[1:], "invalid_argument"),
        (b"\x00\xff\xff\xff\xff", "resource_exhausted"),
        (envelope(b"nonsense"), "invalid_argument"),
        (b'{"process":{}}', "resource_exhausted"),
    ],
)
async def test_a_broken_stream_request_is_answered_in_the_streams_form(body: bytes, code: str) -> None:
    answer = await call("Count", body, "application/connect+json")
    assert answer.status == 200
    assert error_of(await content(answer))["code"] == code


async def test_a_client_stream_is_read_in_any_cut() -> None:
    data = envelope(b'{"stdout":"YQ=="}') + envelope(b'{"stdout":"Yg=="}')
    for cut in range(len(data)):
        answer = await call("Sum", body_of(*filter(None, (data[:cut], data[cut:]))), "application/connect+json")
        assert envelopes(await content(answer)) == [(0, b'{"stdout":"YWI="}'), (2, b"{}")]


async def test_an_oversized_envelope_is_refused_before_it_is_read() -> None:
    body = body_of(struct.pack(">BI", 0, 1001))
    with pytest.raises(ConnectError) as caught:
        _ = [each async for each in read_envelopes(body, 1000)]
    assert caught.value.code is Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("text", "seconds"), [("0", 0.0), ("1500", 1.5), ("9999999999", 9999999.999)])
def test_timeouts_are_milliseconds(text: str, seconds: float) -> None:
    assert parse_timeout_ms(Headers([("connect-timeout-ms", text)])) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1.5", "99999999999", "٣", "1 "])
def test_a_malformed_timeout_is_refused(text: str) -> None:
    with pytest.raises(ConnectError):
        parse_timeout_ms(Headers([("connect-timeout-ms", text)]))


def test_the_end_envelope_carries_code_and_message() -> None:
    assert error_of(end_of_stream(ConnectError(Code.ABORTED, "ä"))) == {"code": "aborted", "message": "ä"}


def test_an_empty_answer_is_an_empty_object() -> None:
    assert StreamInputResponse().to_json() == b"{}"
