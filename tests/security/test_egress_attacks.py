"""Attempts to get out of a sandbox through or around the gateway. Decided by canaries outside, each with a control.

The family egress of the attack suite (`atoll_attacks.egress`), and what is no attempt of one program: siblings, floods,
policies that change.
"""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from e2b import CommandExitException

from atoll_attacks import Attempt, Controls, Family, Impossible, Outcome, Range, attempts
from support.egress_world import World, no_world, world
from support.host import requires, skip_without
from support.tiers import TIERS

FAULT = no_world()
pytestmark = [requires("namespaces"), pytest.mark.skipif(FAULT is not None, reason=str(FAULT))]

ATTEMPTS = [attempt for attempt in attempts() if attempt.family is Family.EGRESS]
SPEAKING = """
import resource
from talk import *
from talk import os, socket, struct, time, TAG
"""


@dataclass
class Stage:
    """The world, and where attempts are run in it."""

    world: World
    range: Range

    def inside(self, policy: str, code: str, tag: str) -> str:
        try:
            return self.range.of_policy(policy).commands.run(self.command(code, tag), timeout=40).stderr
        except CommandExitException as error:
            return error.stderr

    def command(self, code: str, tag: str = "x") -> str:
        """Beside the modules that the programs of attempts have."""
        words = [tag, json.dumps({**self.range.world.places, "target": 1})]
        quoted = " ".join(shlex.quote(word) for word in ["python3", "-c", SPEAKING + code, *words])
        return f"cd /var/tmp/attempts && exec timeout 20 {quoted}"

    def arrived(self, tag: str, seconds: float) -> bool:
        return self.world.networks.arrived(tag, seconds)


@pytest.fixture(scope="module")
def controls() -> Controls:
    """What was tried without the wall, or behind another: once for all tiers."""
    return {}


@pytest.fixture(scope="module", params=TIERS)
def stage(
    request: pytest.FixtureRequest, controls: Controls, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stage]:
    tier = request.param
    skip_without(tier)
    directory = tmp_path_factory.mktemp("egress")
    with world(directory, templates_dir, tier=tier) as made, pytest.MonkeyPatch.context() as patch:
        for name, value in made.environ.items():
            patch.setenv(name, value)
        with Range(networks=made.networks, data_dir=made.server.data_dir, controls=controls) as place:
            yield Stage(made, place)


Ended = tuple[Outcome, Outcome | Impossible | None]


@pytest.fixture(scope="module")
def outcomes(stage: Stage) -> dict[str, Ended]:
    """All attempts and their controls, some at a time."""
    return stage.range.attack_all(ATTEMPTS, controls=True)


@pytest.mark.timeout(400)  # the first waits for all
@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.name)
def test_nothing_gets_out(attempt: Attempt, outcomes: dict[str, Ended]) -> None:
    attack, control = outcomes[attempt.name]
    assert isinstance(control, Impossible) or (control and control.breach), f"the control did not arrive: {control}"
    assert attack.breach is None, attack.said


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
        assert stage.arrived(nonce, 5), (box, code, said)


def test_a_sibling_sandbox_is_out_of_reach(stage: Stage) -> None:
    listen = "import http.server as h; h.HTTPServer(('0.0.0.0', 9000), h.SimpleHTTPRequestHandler).serve_forever()"
    sibling = stage.range.of_policy("open")
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
    said = stage.range.of_policy("open").commands.run(stage.command(script), user="root").stdout
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
    running = stage.range.of_policy("open").commands.run(stage.command(flood), background=True)
    time.sleep(3)
    nonce = f"n{secrets.token_hex(6)}"
    stage.inside("denied", "http(GOOD, 'good.test')", nonce)
    assert stage.arrived(nonce, 5), "another sandbox was starved"
    stage.range.of_policy("denied").get_info()
    assert int(running.wait().stdout) > 2000, "there was no flood"
    passed = sum(line["kind"] == "connect" for line in stage.world.internet.lines) - before
    assert 100 < passed <= 1024 + 10
    again = f"n{secrets.token_hex(6)}"
    stage.inside("open", "http(GOOD, 'good.test')", again)
    assert stage.arrived(again, 10), "the flooder's own way out stayed shut"


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
    assert stage.arrived(nonce, 5)
    assert sum(line["kind"] == "dns" for line in stage.world.internet.lines) - before < 10_000


def test_a_policy_that_closes_cuts_what_is_open(stage: Stage) -> None:
    box = stage.range.make({})
    first, second = (f"n{secrets.token_hex(6)}" for _ in range(2))
    code = f"""
s = talk(GOOD, 80, get('good.test', '/{first}'))
open('/tmp/first', 'w').close()
while not os.path.exists('/tmp/go'): time.sleep(0.05)
s.sendall(get('good.test', '/{second}').encode())
time.sleep(1)
"""
    running = box.commands.run(stage.command(code), background=True)
    assert stage.arrived(first, 10), "the control did not arrive"
    box.update_network({"allow_internet_access": False})
    box.files.write("/tmp/go", "")
    with suppress(CommandExitException):
        running.wait()
    assert not stage.arrived(second, 1)
    box.kill()
