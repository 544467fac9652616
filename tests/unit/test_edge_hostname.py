"""Where a request wants to go, from its host name or headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.edge import hostname
from atoll.edge.hostname import Target
from atoll.model.errors import InvalidRequest
from atoll.model.sandbox import ENVD_PORT

DOMAINS = frozenset({"localhost", "sbx.example.com"})


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("49983-abcd.sbx.example.com", Target("abcd", 49983, by_host=True)),
        ("8000-i0a1b2.localhost:3000", Target("i0a1b2", 8000, by_host=True)),
        ("1-ABCD.SBX.Example.COM.", Target("abcd", 1, by_host=True)),
        ("65535-a.localhost", Target("a", 65535, by_host=True)),
    ],
)
def test_a_sandboxs_host_name_is_read(host: str, target: Target) -> None:
    assert hostname.from_host(host, DOMAINS) == target


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "127.0.0.1:3000",
        "[::1]:3000",
        "api.sbx.example.com",
        "0-abcd.localhost",
        "65536-abcd.localhost",
        "123456-abcd.localhost",
        "-abcd.localhost",
        "80-.localhost",
        "80-ab-cd.localhost",
        "80-ab_cd.localhost",
        "80-abcd.evil.com",
        "80-abcd.localhost.evil.com",
        "80-abcd.xlocalhost",
        "x.80-abcd.localhost",
        "٣-abcd.localhost",
        "80-abcd",
    ],
)
def test_any_other_host_name_names_no_sandbox(host: str) -> None:
    assert hostname.from_host(host, DOMAINS) is None


@given(st.text(max_size=80))
def test_no_host_name_raises(host: str) -> None:
    target = hostname.from_host(host, DOMAINS)
    assert target is None or 1 <= target.port <= 65535


def test_headers_name_id_and_port_and_envd_is_the_default() -> None:
    assert hostname.from_headers("abcd", "8000") == Target("abcd", 8000)
    assert hostname.from_headers("abcd", None) == hostname.from_headers("abcd", "") == Target("abcd", ENVD_PORT)


@pytest.mark.parametrize("sandbox_id", ["", "abc", "ABCD", "ab-cd", "../etc", "ab cd", "a" * 65, "abcd\n"])
def test_a_malformed_id_is_refused(sandbox_id: str) -> None:
    with pytest.raises(InvalidRequest):
        hostname.from_headers(sandbox_id, "80")


@pytest.mark.parametrize("port", ["0", "-1", "65536", "8e3", " 80", "80 ", "٣", "999999999999", "0x50"])
def test_a_malformed_port_is_refused(port: str) -> None:
    with pytest.raises(InvalidRequest):
        hostname.from_headers("abcd", port)


@pytest.mark.parametrize(
    "text", ["sbx.example.com", "SBX.example.com:3000", "http://sbx.example.com/", ".sbx.example.com."]
)
def test_a_configured_domain_may_be_written_in_many_ways(text: str) -> None:
    assert hostname.domain_of(text) == "sbx.example.com"
