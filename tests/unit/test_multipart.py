"""The multipart parser: what went in comes out, however the bytes are cut; a torn body is never taken for whole."""

from __future__ import annotations

import itertools

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.guest.files.multipart import PART_END, Event, MultipartError, MultipartParser, PartBegin, boundary_of
from support.raising import raised

Part = tuple[PartBegin, bytes]


def parts_of(events: list[Event]) -> list[Part]:
    parts: list[Part] = []
    head: PartBegin | None = None
    data = b""
    for event in events:
        if isinstance(event, PartBegin):
            assert head is None
            head, data = event, b""
        elif event is PART_END:
            assert head is not None
            parts.append((head, data))
            head = None
        else:
            assert isinstance(event, bytes)
            assert event
            data += event
    return parts


def feed_all(parser: MultipartParser, body: bytes, cuts: list[int]) -> list[Event]:
    events: list[Event] = []
    points = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    for start, end in itertools.pairwise(points):
        events += parser.feed(body[start:end])
    return events


def encode(files: list[tuple[str, bytes]]) -> tuple[bytes, bytes]:
    """Body and boundary as httpx, the SDK's own client, writes them."""
    request = httpx.Request("POST", "http://x/files", files=[("file", (name, data)) for name, data in files])
    return request.read(), boundary_of(request.headers["content-type"])


names = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
near_boundaries = st.lists(st.sampled_from([b"\r\n", b"--", b"\r", b"\n", b"-", b"\r\n--", b"x", b"B"]), max_size=20)
contents = st.one_of(st.binary(max_size=300), near_boundaries.map(b"".join))
cut_points = st.lists(st.integers(0, 3000), max_size=30)


@given(st.lists(st.tuples(names, contents), min_size=1, max_size=4), cut_points)
def test_what_httpx_writes_is_read_back_whatever_the_cuts(files: list[tuple[str, bytes]], cuts: list[int]) -> None:
    body, boundary = encode(files)
    parser = MultipartParser(boundary)
    parts = parts_of(feed_all(parser, body, cuts))
    parser.finish()
    assert [data for _, data in parts] == [data for _, data in files]
    # `%22` in a name cannot be told from an escaped quote: the HTML form encoding has no escape for the percent sign.
    for (head, _), (name, _) in zip(parts, files, strict=True):
        if "%" not in name and "\\" not in name:
            assert head == PartBegin("file", name)


@given(contents, cut_points)
def test_data_that_looks_like_the_boundary_is_data(data: bytes, cuts: list[int]) -> None:
    data = b"\r\n--Bo" + data + b"\r\n--B"
    body = b'--Boundary\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + data + b"\r\n--Boundary--\r\n"
    parser = MultipartParser(b"Boundary")
    assert parts_of(feed_all(parser, body, cuts)) == [(PartBegin("file", None), data)]
    parser.finish()


@given(st.integers(0, 10_000), contents)
def test_a_body_cut_short_is_never_whole(where: int, data: bytes) -> None:
    body, boundary = encode([("x", data), ("y", data)])
    end = body.rindex(b"--" + boundary + b"--") + len(boundary) + 4
    parser = MultipartParser(boundary)
    parser.feed(body[: min(where, end - 1)])
    with pytest.raises(MultipartError, match="ends before"):
        parser.finish()


@given(st.binary(max_size=2000))
def test_any_bytes_end_in_events_or_in_a_multipart_error(body: bytes) -> None:
    parser = MultipartParser(b"B")
    assert raised(lambda: (parser.feed(b"--B" + body), parser.finish())) in (None, MultipartError)


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        ('form-data; name="file"; filename="a%22b%0D%0Ac"', 'a"b\r\nc'),
        ('form-data; name="file"; filename="a\\"b"', 'a"b'),
        ('form-data; name="file"; filename="a\\b"', "a\\b"),
        ('form-data; name="file"; filename="100%.txt"', "100%.txt"),
        ('form-data; name="file"; filename="/home/user/a;b.txt"', "/home/user/a;b.txt"),
        ('form-data; name="file"; filename="x"; filename*=UTF-8\'\'na%C3%AFve', "naïve"),
        ("form-data; name=file; filename=plain", "plain"),
        ('form-data; name="file"', None),
    ],
)
def test_file_names_are_unescaped_as_clients_escape_them(header: str, filename: str | None) -> None:
    parser = MultipartParser(b"B")
    events = parser.feed(f"--B\r\ncontent-disposition: {header}\r\n\r\n\r\n--B--".encode())
    assert parts_of(events) == [(PartBegin("file", filename), b"")]
    parser.finish()


@pytest.mark.parametrize(
    "body",
    [
        b"x" * 10_000,
        b"--Bx\r\n\r\n",
        b"--B\r\n\r\ndata\r\n--B--",
        b"--B\r\nContent-Disposition: attachment\r\n\r\n",
        b'--B\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n',
        b"--B\r\nX: " + b"y" * 40_000,
    ],
)
def test_malformed_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(MultipartError):
        MultipartParser(b"B").feed(body)


def test_what_stands_around_the_parts_is_ignored() -> None:
    parser = MultipartParser(b"B")
    body = (
        b'hello\r\n--B  \r\nContent-Disposition: form-data; name="file"\r\n\r\n1\r\n--B--\r\nepilogue' + b"x" * 50_000
    )
    assert parts_of(parser.feed(body)) == [(PartBegin("file", None), b"1")]
    parser.finish()


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 300}",
    ],
)
def test_a_content_type_without_a_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(MultipartError):
        boundary_of(content_type)


def test_a_quoted_boundary_is_unquoted() -> None:
    assert boundary_of('multipart/form-data; charset=x; boundary="a b"') == b"a b"
