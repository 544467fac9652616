"""What of the host no sandbox may reach, and what may be used at once and how fast."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from atoll.egress.budget import Budget, Pace
from atoll.egress.forbidden import HostNetworks, host_addresses
from atoll.model.addresses import ForbiddenNetworks

FIB_TRIE = """Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
Local:
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 5.9.0.1
        /32 host LOCAL
     |-- 5.9.0.255
        /32 link BROADCAST
"""
ip = ipaddress.ip_address


def test_every_address_of_every_interface_is_the_hosts(tmp_path: Path) -> None:
    (tmp_path / "fib_trie").write_text(FIB_TRIE)
    (tmp_path / "if_inet6").write_text("20010db8000000000000000000000001 02 40 00 80     eth0\n")
    assert host_addresses(tmp_path) == {ip("127.0.0.1"), ip("5.9.0.1"), ip("2001:db8::1")}
    assert host_addresses(tmp_path / "absent") == frozenset()
    assert ip("127.0.0.1") in host_addresses()


def test_a_new_address_of_the_host_is_noticed() -> None:
    now, found = [0.0], [ip("5.9.0.1")]
    forbidden = HostNetworks(read=lambda: frozenset(found), clock=lambda: now[0])
    found.append(ip("5.9.0.2"))
    assert not forbidden().forbids(ip("5.9.0.2"))
    now[0] = 6.0
    assert forbidden().forbids(ip("5.9.0.2"))


def test_an_opened_range_does_not_open_the_host_in_it_but_its_very_address_does() -> None:
    host = frozenset({ip("10.1.0.5")})
    by_range = ForbiddenNetworks(host, (ipaddress.ip_network("10.1.0.0/16"),))
    assert by_range.forbids(ip("10.1.0.5"))
    assert not by_range.forbids(ip("10.1.0.6"))
    assert not ForbiddenNetworks(host, (ipaddress.ip_network("10.1.0.5/32"),)).forbids(ip("10.1.0.5"))
    assert ForbiddenNetworks(host, (ipaddress.ip_network("0.0.0.0/0"),)).forbids(ip("127.0.0.1"))


def test_a_budget_and_a_pace_run_out_and_recover() -> None:
    budget = Budget(1)
    assert budget.take()
    assert not budget.take()
    budget.give()
    assert budget.take()
    now = [0.0]
    pace = Pace(10.0, 2, lambda: now[0])
    assert [pace.go() for _ in range(3)] == [True, True, False]
    now[0] = 0.1
    assert [pace.go() for _ in range(2)] == [True, False]
