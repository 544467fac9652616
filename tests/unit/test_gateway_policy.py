"""What may leave a sandbox, decided without a network."""

from __future__ import annotations

import ipaddress

import pytest

from atoll.egress.policy import EgressPolicy, Verdict, decide_address, decide_name, matches
from atoll.model.addresses import ForbiddenNetworks
from atoll.model.errors import InvalidRequest

PUBLIC = ipaddress.ip_address("93.184.215.14")
GROUND = ForbiddenNetworks(host_addresses=frozenset({ipaddress.ip_address("5.9.0.1")}))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "255.255.255.255", "5.9.0.1", "::1", "fe80::1", "fd00::1", "::ffff:10.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a00:1::1",
    ],
)  # fmt: skip
def test_private_metadata_and_host_addresses_are_refused_whatever_the_sandbox_asks_for(address: str) -> None:
    policy = EgressPolicy.parse(allow_out=[address, "0.0.0.0/0", "::/0"])
    assert decide_address(policy, GROUND, ipaddress.ip_address(address)) is Verdict.DENIED_PRIVATE


def test_only_the_operator_opens_a_private_range() -> None:
    forbidden = ForbiddenNetworks(private_allowed=(ipaddress.ip_network("10.1.0.0/16"),))
    assert decide_address(EgressPolicy(), forbidden, ipaddress.ip_address("10.1.2.3")) is Verdict.ALLOWED
    assert decide_address(EgressPolicy(), forbidden, ipaddress.ip_address("10.2.0.1")) is Verdict.DENIED_PRIVATE


def test_without_entries_everything_public_is_allowed() -> None:
    assert decide_address(EgressPolicy(), GROUND, PUBLIC) is Verdict.ALLOWED


def test_no_internet_access_denies_but_allow_out_wins() -> None:
    closed = EgressPolicy.parse(allow_internet=False)
    assert decide_address(closed, GROUND, PUBLIC) is Verdict.DENIED_INTERNET
    opened = EgressPolicy.parse(allow_internet=False, allow_out=["93.184.215.0/24"])
    assert decide_address(opened, GROUND, PUBLIC) is Verdict.ALLOWED


def test_deny_out_denies_a_range_and_allow_out_wins_over_it() -> None:
    denied = EgressPolicy.parse(deny_out=["93.184.0.0/16"])
    assert decide_address(denied, GROUND, PUBLIC) is Verdict.DENIED_RULE
    both = EgressPolicy.parse(deny_out=["0.0.0.0/0"], allow_out=[str(PUBLIC)])
    assert decide_address(both, GROUND, PUBLIC) is Verdict.ALLOWED


def test_a_closed_policy_with_names_leaves_the_verdict_to_the_name() -> None:
    policy = EgressPolicy.parse(deny_out=["0.0.0.0/0"], allow_out=["*.example.com", "example.com"])
    assert decide_address(policy, GROUND, PUBLIC) is None
    given = frozenset({"www.example.com"})
    assert decide_name(policy, "WWW.example.com.", given, must_speak=True) is Verdict.ALLOWED
    assert decide_name(policy, "evil.test", given, must_speak=True) is Verdict.DENIED_NAME
    assert decide_name(policy, "api.example.com", given, must_speak=True) is Verdict.DENIED_MISMATCH
    assert decide_name(policy, None, given, must_speak=True) is Verdict.DENIED_NAME
    assert decide_name(policy, None, given, must_speak=False) is Verdict.ALLOWED
    assert decide_name(policy, None, frozenset(), must_speak=False) is Verdict.DENIED_NAME


def test_dns_is_egress() -> None:
    closed = EgressPolicy.parse(allow_internet=False, allow_out=["*.example.com"])
    assert closed.may_resolve("a.example.com.")
    assert not closed.may_resolve("example.com")
    assert not closed.may_resolve("stolen-data.evil.test")
    assert EgressPolicy().may_resolve("anything.test")


@pytest.mark.parametrize(
    ("pattern", "name", "verdict"),
    [
        ("example.com", "example.com", True),
        ("example.com", "a.example.com", False),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "notexample.com", False),
        ("*", "x", True),
    ],
)
def test_wildcards_cover_what_is_below(pattern: str, name: str, verdict: bool) -> None:
    assert matches(pattern, name) is verdict


@pytest.mark.parametrize(
    "entry", ["", "a..b", "exa mple.com", "1.2.3", "1.2.3.4/99", "http://example.com", "*.*.com", "-a"]
)
def test_a_wrong_entry_is_named(entry: str) -> None:
    with pytest.raises(InvalidRequest, match="allowOut"):
        EgressPolicy.parse(allow_out=[entry])


def test_deny_out_takes_no_names() -> None:
    with pytest.raises(InvalidRequest, match="denyOut takes addresses"):
        EgressPolicy.parse(deny_out=["example.com"])
