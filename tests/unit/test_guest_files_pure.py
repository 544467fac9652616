"""Paths, signatures, ranges, conditions and codings of `/files`: the rules without any file."""

from __future__ import annotations

import pytest
from e2b.sandbox.signature import get_signature
from hypothesis import given
from hypothesis import strategies as st

from atoll.guest.files import negotiation, paths, signing

HOME = "/home/user"


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("", HOME),
        ("~", HOME),
        ("~/", HOME),
        ("~/a b", "/home/user/a b"),
        ("a.txt", "/home/user/a.txt"),
        ("./a/../b", "/home/user/b"),
        ("../x", "/home/x"),
        ("../../../../x", "/x"),
        ("/", "/"),
        ("//etc///passwd/", "/etc/passwd"),
        ("/a/./b", "/a/b"),
        ("/link/../x", "/link/../x"),
        ("a~", "/home/user/a~"),
        ("..hidden", "/home/user/..hidden"),
    ],
)
def test_a_path_resolves_as_in_envd(path: str, resolved: str) -> None:
    assert paths.resolve(path, HOME) == resolved


def test_an_empty_path_is_the_default_workdir_and_a_relative_one_starts_at_the_home() -> None:
    assert paths.resolve("", HOME, "/code") == "/code"
    assert paths.resolve("x", HOME, "/code") == "/home/user/x"


@pytest.mark.parametrize("path", ["~root/x", "a\0b", "x" * 5000, "/\ud800"])
def test_what_cannot_be_a_path_is_refused(path: str) -> None:
    with pytest.raises(paths.InvalidPath):
        paths.resolve(path, HOME)


@given(st.text())
def test_a_resolved_path_is_absolute_and_can_be_given_to_the_kernel(path: str) -> None:
    try:
        resolved = paths.resolve(path, HOME)
    except paths.InvalidPath:
        return
    assert resolved.startswith("/")
    assert "\0" not in resolved


def test_shown_names_are_valid_unicode() -> None:
    assert paths.shown("caf\udce9") == "caf\ufffd"
    assert paths.shown("naïve") == "naïve"
    paths.shown("a\udcff").encode("utf-8")


@given(
    st.text(), st.sampled_from(["read", "write"]), st.none() | st.text(min_size=1), st.none() | st.integers(0, 10**6)
)
def test_a_signature_of_the_sdk_is_accepted_for_what_it_signs(
    path: str, operation: signing.Operation, user: str | None, expires_in: int | None
) -> None:
    signed = get_signature(path, operation, user, "token", expires_in)
    query = {"path": path, "signature": signed["signature"]}
    if user:
        query["username"] = user
    if signed["expiration"] is not None:
        query["signature_expiration"] = str(signed["expiration"])
    assert signing.refusal(query, operation, "token", now=0) is None
    other: signing.Operation = "write" if operation == "read" else "read"
    assert signing.refusal(query, other, "token", now=0) == "invalid signature"
    assert signing.refusal(query, operation, "other token", now=0) == "invalid signature"
    assert signing.refusal({**query, "path": path + "x"}, operation, "token", now=0) == "invalid signature"
    assert signing.refusal({**query, "username": (user or "") + "x"}, operation, "token", now=0) == "invalid signature"


def test_an_expired_or_extended_signature_is_refused() -> None:
    good = {"path": "a", "signature": signing.sign("a", "read", "", "t", 100), "signature_expiration": "100"}
    assert signing.refusal(good, "read", "t", now=100) is None
    assert signing.refusal(good, "read", "t", now=101) == "signature is already expired"
    assert signing.refusal({**good, "signature_expiration": "999"}, "read", "t", now=101) == "invalid signature"
    without = {key: value for key, value in good.items() if key != "signature_expiration"}
    assert signing.refusal(without, "read", "t", now=0) == "invalid signature"


@pytest.mark.parametrize("expiration", ["", "-1", "x", "1e3", "９", "1" * 40])
def test_an_expiration_that_is_no_number_is_refused(expiration: str) -> None:
    query = {"path": "a", "signature": "v1_x", "signature_expiration": expiration}
    assert signing.refusal(query, "read", "t", now=0) == "signature_expiration must be Unix seconds"


def test_no_signature_is_said_so() -> None:
    assert signing.refusal({"path": "a"}, "read", "t", now=0) == "missing signature query parameter"
    assert signing.refusal({"path": "a", "signature": "v1_é"}, "read", "t", now=0) == "invalid signature"


@given(st.integers(1, 1000), st.integers(0, 2000), st.integers(0, 2000))
def test_a_range_selects_what_a_slice_would(size: int, first: int, last: int) -> None:
    data = bytes(index % 256 for index in range(size))
    try:
        span = negotiation.parse_range(f"bytes={first}-{last}", size)
    except negotiation.RangeNotSatisfiable:
        assert first >= size or last < first
        return
    assert span is not None
    assert data[span.offset : span.offset + span.count] == data[first : last + 1]
    assert span.content_range(size) == f"bytes {first}-{min(last, size - 1)}/{size}"


@given(st.integers(0, 1000), st.integers(0, 2000))
def test_a_suffix_range_selects_the_end(size: int, count: int) -> None:
    data = bytes(size)
    try:
        span = negotiation.parse_range(f"bytes=-{count}", size)
    except negotiation.RangeNotSatisfiable:
        assert not size or not count
        return
    assert span is not None
    assert data[span.offset : span.offset + span.count] == data[-count:]


@given(st.text(st.sampled_from("bytes= ,-0123456789x"), max_size=30), st.integers(0, 100))
def test_any_range_header_selects_inside_the_file_or_is_refused(header: str, size: int) -> None:
    try:
        span = negotiation.parse_range(header, size)
    except negotiation.RangeNotSatisfiable:
        return
    assert span is None or (span.offset >= 0 and span.count > 0 and span.offset + span.count <= size)


def test_open_and_several_ranges() -> None:
    assert negotiation.parse_range("bytes=3-", 10) == negotiation.Span(3, 7)
    assert negotiation.parse_range("bytes=0-1,4-5", 10) is None


def test_conditions() -> None:
    second = 1_000_000_000
    tag = negotiation.etag(5 * second, 10)
    date = negotiation.http_date(5 * second)
    assert date == "Thu, 01 Jan 1970 00:00:05 GMT"
    assert negotiation.not_modified(tag, None, tag, 5 * second)
    assert negotiation.not_modified(f'"x", W/{tag}', None, tag, 5 * second)
    assert not negotiation.not_modified('"x"', date, tag, 5 * second)
    assert negotiation.not_modified(None, date, tag, 5 * second + 1)
    assert not negotiation.not_modified(None, date, tag, 6 * second)
    assert not negotiation.not_modified(None, "yesterday", tag, 5 * second)
    assert not negotiation.not_modified(None, None, tag, 5 * second)
    assert negotiation.range_still_applies(tag, tag, 0)
    assert not negotiation.range_still_applies('"old"', tag, 0)
    assert negotiation.range_still_applies(date, tag, 5 * second)
    assert not negotiation.range_still_applies(date, tag, 6 * second)


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("gzip;q=0.5", "gzip"),
        ("gzip, deflate, br, zstd", "identity"),
        ("gzip, deflate", "identity"),
        ("identity", "identity"),
        ("br", "identity"),
        ("*", "identity"),
        ("gzip;q=1.0, identity;q=0.5", "gzip"),
        ("gzip, *;q=0", "gzip"),
        ("identity;q=0, gzip", "gzip"),
        ("gzip;q=0", "identity"),
    ],
)
def test_gzip_only_for_a_client_that_asks_for_it(header: str | None, coding: str) -> None:
    assert negotiation.choose_coding(header) == coding


@pytest.mark.parametrize("header", ["identity;q=0", "*;q=0", "identity;q=0, gzip;q=0, br"])
def test_a_client_that_takes_nothing_we_have_is_told(header: str) -> None:
    with pytest.raises(negotiation.NotAcceptable):
        negotiation.choose_coding(header)
