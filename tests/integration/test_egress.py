"""What a sandbox reaches, by the published SDK against a real server: policies, live updates, header rules, records.

The outside is a small internet in network namespaces of the test's own (`support.egress_world`).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2b import ALL_TRAFFIC, CommandExitException, InvalidArgumentException, Sandbox, SandboxException, Secret
from sdk_support import eventually

from atoll.runtime import E2BRuntime
from atoll_attacks.outside import internet
from support.egress_world import Make, World, making, no_world, world
from support.host import requires, skip_without
from support.tiers import TIERS

FAULT = no_world()
pytestmark = [requires("namespaces"), pytest.mark.skipif(FAULT is not None, reason=str(FAULT))]


@pytest.fixture(scope="module", params=TIERS)
def outside(
    request: pytest.FixtureRequest, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    skip_without(request.param)
    with world(tmp_path_factory.mktemp("egress"), templates_dir, tier=request.param) as made:
        yield made


@pytest.fixture
def make(outside: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with making(outside, monkeypatch) as create:
        yield create


def fetch(sandbox: Sandbox, url: str) -> str:
    """The body, or "" when it could not be had."""
    try:
        return sandbox.commands.run(f"curl -sS -m 10 '{url}'", timeout=30).stdout
    except CommandExitException:
        return ""


def records(outside: World, sandbox: Sandbox) -> list[dict[str, Any]]:
    url = f"{outside.api_url}/sandboxes/{sandbox.sandbox_id}/network/connections"
    request = urllib.request.Request(url, headers={"X-API-Key": outside.server.api_key})
    found: list[dict[str, Any]] = json.load(urllib.request.urlopen(request, timeout=10))
    return found


def sent(outside: World, path: str) -> dict[str, Any]:
    line = outside.internet.wait(lambda line: line.get("path") == path, 5)
    assert line is not None, path
    return line


def test_the_internet_is_on_unless_asked_otherwise(make: Make) -> None:
    sandbox = make()
    assert sandbox.get_info().allow_internet_access is True
    assert "good.test" in fetch(sandbox, "http://good.test/")
    assert "good.test" in fetch(sandbox, "https://good.test/ -k")[:200] or fetch(sandbox, "http://evil.test/")


def test_no_internet_access(make: Make) -> None:
    sandbox = make(allow_internet_access=False)
    assert sandbox.get_info().allow_internet_access is False
    began = time.monotonic()
    assert fetch(sandbox, "http://good.test/") == ""
    assert fetch(sandbox, f"http://{internet.GOOD}/") == ""
    assert time.monotonic() - began < 10, "refused, not left to time out"


def test_allow_out_by_address_range_and_name(make: Make) -> None:
    by_address = make(network={"allow_out": [internet.GOOD], "deny_out": [ALL_TRAFFIC]})
    assert fetch(by_address, f"http://{internet.GOOD}/")
    assert fetch(by_address, f"http://{internet.EVIL}/") == ""
    by_range = make(network={"allow_out": ["203.0.113.0/28"], "deny_out": lambda ctx: [ctx.all_traffic]})
    assert fetch(by_range, f"http://{internet.GOOD}/")
    assert fetch(by_range, f"http://{internet.EVIL}/") == ""
    by_name = make(network={"allow_out": ["*.good.test"], "deny_out": lambda ctx: [ctx.all_traffic]})
    assert fetch(by_name, "http://sub.good.test/")
    assert fetch(by_name, "http://good.test/") == "", "a wildcard is what lies below"
    network = by_name.get_info().network
    assert network is not None
    assert network["allow_out"] == ["*.good.test"]
    assert network["deny_out"] == ["0.0.0.0/0"]


def test_deny_out_denies_and_allow_out_wins(make: Make) -> None:
    sandbox = make(network={"deny_out": ["203.0.113.0/24"], "allow_out": [internet.API]})
    assert fetch(sandbox, f"http://{internet.API}/")
    assert fetch(sandbox, f"http://{internet.GOOD}/") == ""


def test_an_update_replaces_all_of_it_at_once(make: Make) -> None:
    sandbox = make(network={"deny_out": [internet.EVIL]})
    assert fetch(sandbox, "http://evil.test/") == ""
    sandbox.update_network({"deny_out": [internet.GOOD]})
    assert fetch(sandbox, "http://evil.test/")
    assert fetch(sandbox, "http://good.test/") == ""
    sandbox.update_network({"allow_internet_access": False})
    assert fetch(sandbox, "http://evil.test/") == ""
    assert sandbox.get_info().allow_internet_access is False
    sandbox.update_network({})
    assert fetch(sandbox, "http://good.test/")
    assert sandbox.get_info().allow_internet_access is True


def test_a_rate_holds_for_all_that_passes_and_outlives_new_rules(make: Make) -> None:
    slow, usual = make(metadata={"atoll.network_mib_s": "1"}), make()

    def seconds(sandbox: Sandbox) -> float:
        began = time.monotonic()
        sandbox.commands.run("curl -sS -m 60 -o /dev/null http://good.test/big/3145728", timeout=60)
        return time.monotonic() - began

    assert seconds(slow) > 2
    assert seconds(usual) < seconds(slow)
    slow.update_network({"allow_out": [internet.GOOD]})
    assert seconds(slow) > 2
    with pytest.raises(SandboxException, match="whole number of MiB"):
        make(metadata={"atoll.network_mib_s": "0.5"})


def test_name_servers_of_the_sandboxs_own(make: Make) -> None:
    assert fetch(make(network={"dns_servers": [internet.DNS]}), "http://good.test/")
    assert fetch(make(network={"dns_servers": []}), "http://good.test/") == ""
    assert fetch(make(network={"dns_servers": ["10.9.9.9"]}), "http://good.test/") == "", "a private one is not asked"


@pytest.mark.parametrize(
    "network",
    [
        {"allow_out": ["good.test"]},
        {"allow_out": ["1.2.3.4/40"]},
        {"allow_out": ["http://good.test"]},
        {"deny_out": ["good.test"]},
        {"dns_servers": ["good.test"]},
        {"rules": {"*": [{"transform": {"headers": {"A": "b"}}}]}},
        {"rules": {"good.test": [{"transform": {"headers": {"A": "b\r\nC: d"}}}]}},
        {"rules": {"good.test": [{"transform": {"headers": {"Host": "evil.test"}}}]}},
        {"egress_proxy": {"address": "203.0.113.10:1080"}},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_on_create_and_update(make: Make, network: dict[str, Any]) -> None:
    with pytest.raises(
        (InvalidArgumentException, SandboxException), match=r"400|allowOut|denyOut|dns|rules|egressProxy"
    ):
        make(network=network)


def rule(name: str, value: str) -> list[dict[str, Any]]:
    return [{"transform": {"headers": {name: value}}}]


def test_a_rules_secret_is_added_outside_and_never_enters_the_sandbox(outside: World, make: Make) -> None:
    secret = f"s3cret-{secrets.token_hex(8)}"
    headers = rule("Authorization", f"Bearer {secret}")
    sandbox = make(network={"rules": {"api.test": headers, "http://api.test": headers}})
    network = sandbox.get_info().network
    assert network is not None
    assert secret not in str(network), "answers show no secret"
    assert network["rules"]["api.test"][0]["transform"]["headers"] == {"Authorization": "[hidden]"}
    for scheme in ("http", "https"):
        path = f"/{secrets.token_hex(4)}"
        sandbox.commands.run(f"curl -fsS -m 10 -H 'authorization: mine' {scheme}://api.test{path}")
        assert sent(outside, path)["headers"]["authorization"] == f"Bearer {secret}"
        other = f"/{secrets.token_hex(4)}"
        sandbox.commands.run(f"curl -fksS -m 10 {scheme}://good.test{other}")
        assert "authorization" not in sent(outside, other)["headers"]
    path = f"/{secrets.token_hex(4)}"
    sandbox.commands.run(f"python3 -c \"import urllib.request as u; u.urlopen('https://api.test{path}')\"")
    assert sent(outside, path)["headers"]["authorization"] == f"Bearer {secret}"
    script = f"env; cat /proc/[0-9]*/environ; grep -rsl {secret} / --exclude-dir=proc --exclude-dir=sys; true"
    assert secret not in sandbox.commands.run(script, user="root", timeout=100).stdout
    assert any(one["rewritten"] and one["name"] == "api.test" for one in records(outside, sandbox))


def test_a_rules_secret_goes_to_nobody_else(outside: World, make: Make) -> None:
    secret = f"s3cret-{secrets.token_hex(8)}"
    names = ("api.test", "untrusted.test", "http://api.test", "http://untrusted.test")
    rules = {name: rule("X-Key", secret) for name in names}
    sandbox = make(network={"rules": rules})
    for command in (
        f"curl -sS -m 5 --resolve api.test:80:{internet.EVIL} http://api.test/",
        f"curl -ksS -m 5 --resolve api.test:443:{internet.EVIL} https://api.test/",
        "curl -sS -m 5 -H 'Host: api.test' http://evil.test/",
        "curl -ksS -m 5 -H 'Host: evil.test' https://api.test/",
        "curl -ksS -m 5 https://untrusted.test/",
    ):
        sandbox.commands.run(f"{command}; true")
    assert sent(outside, "/")
    assert not outside.internet.heard(secret, 0.5)
    assert fetch(sandbox, "https://api.test/now")
    assert sent(outside, "/now")["headers"]["x-key"] == secret, "the control did not arrive"


def test_a_rules_secret_goes_out_encrypted_on_port_443_unless_the_rule_says_otherwise(
    outside: World, make: Make
) -> None:
    secret = f"s3cret-{secrets.token_hex(8)}"
    sandbox = make(network={"rules": {"api.test": rule("X-Key", secret)}})
    elsewhere = ("http://api.test/80", "http://api.test:8080/8080", "https://api.test:8443/8443")
    for url in elsewhere:
        sandbox.commands.run(f"curl -ksS -m 10 {url}; true")
        assert "x-key" not in sent(outside, "/" + url.rsplit("/", 1)[1])["headers"], url
    assert fetch(sandbox, "https://api.test/443")
    assert sent(outside, "/443")["headers"]["x-key"] == secret, "the control"
    assert sum(secret in str(line) for line in outside.internet.lines) == 1
    sandbox.update_network({"rules": {"http://api.test:8080": rule("X-Key", secret)}})
    assert fetch(sandbox, "http://api.test:8080/said")
    assert sent(outside, "/said")["headers"]["x-key"] == secret


def test_a_rule_names_a_secret_and_follows_it_until_it_is_no_more(outside: World, make: Make) -> None:
    name, one, two = (f"s3cret-{secrets.token_hex(8)}" for _ in range(3))
    sandbox = make()  # sets what points the SDK at the server
    told = Secret.create(name, one, {"for": "tests"})
    assert (told.version, told.metadata, Secret.exists(name)) == (1, {"for": "tests"}, True)
    sandbox = make(network={"rules": {"api.test": rule("Authorization", f"Bearer {Secret.fill(name)}")}})

    def carried() -> str | None:
        path = f"/{secrets.token_hex(4)}"
        sandbox.commands.run(f"curl -ksS -m 10 https://api.test{path}")  # without a rule nobody inside trusts it
        value: str | None = sent(outside, path)["headers"].get("authorization")
        return value

    assert carried() == f"Bearer {one}"
    assert Secret.update(told.secret_id, two).version == 2
    assert carried() == f"Bearer {two}"
    assert [found.name for found in Secret.list().next_items()] == [name]
    assert two not in str(sandbox.get_info().network) + str(Secret.get_info(name))
    for kept in (*outside.server.data_dir.rglob("*.json"), *outside.server.data_dir.rglob("atoll.db*")):
        data = kept.read_bytes()
        assert one.encode() not in data, kept
        assert two.encode() not in data, kept
    assert Secret.destroy(name) is True
    assert carried() is None
    assert Secret.destroy(name) is False
    with pytest.raises(SandboxException, match="no secret"):
        make(network={"rules": {"api.test": rule("X-Key", Secret.fill(name))}})


def test_a_secret_that_changes_while_its_sandbox_is_paused_is_in_force_when_it_runs_again(
    outside: World, make: Make
) -> None:
    name, *values = (f"s3cret-{secrets.token_hex(8)}" for _ in range(6))
    sandbox = make()
    Secret.create(name, values[0])
    rules = {"api.test": rule("X-Key", Secret.fill(name))}
    sandbox.update_network({"rules": rules})

    def carried(by: Sandbox, options: str = "-sS") -> str | None:
        path = f"/{secrets.token_hex(4)}"
        by.commands.run(f"curl {options} -m 10 https://api.test{path}")  # trusted inside, by a new guest too
        value: str | None = sent(outside, path)["headers"].get("x-key")
        return value

    assert carried(sandbox) == values[0]
    for value, keep_memory in ((values[1], True), (values[2], False)):
        sandbox.pause(keep_memory=keep_memory)
        Secret.update(name, value)
        sandbox.connect()
        assert carried(sandbox) == value, f"keep_memory={keep_memory}"
    (fork,) = sandbox.fork()
    assert isinstance(fork, Sandbox)
    try:
        Secret.update(name, values[3])
        assert carried(fork) == carried(sandbox) == values[3]
        fork.pause()
        Secret.destroy(name)
        fork.connect()
        assert carried(fork, "-ksS") is None
    finally:
        fork.kill()


async def test_a_git_token_is_added_outside_and_is_nowhere_inside(outside: World, make: Make) -> None:
    token = f"s3cret-{secrets.token_hex(8)}"
    header = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    with E2BRuntime(template="base") as runtime:
        await runtime.connect()
        # What answers here is no git server: to git it is an empty repository.
        url = f"https://x-access-token:{token}@api.test/o/r.git"
        assert await runtime.clone_or_init_repo(None, url, None) == "r"
        asked = outside.internet.wait(lambda line: str(line.get("path")).startswith("/o/r.git/info/refs"), 5)
        assert asked is not None
        assert asked["headers"]["authorization"] == f"Basic {header}"
        patterns = f"-e '[s]{token[1:]}' -e '[{header[0]}]{header[1:]}'"  # that do not match themselves
        scan = f"cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ | grep -ac {patterns}; "
        scan += f"grep -rsl {patterns} /etc /home /root /run /srv /tmp /var /workspace | wc -l"
        box = Sandbox.connect(runtime.sandbox_id)
        assert box.commands.run(scan, user="root", timeout=100).stdout.split() == ["0", "0"]
        assert "https://api.test/o/r.git" in box.commands.run("cat /workspace/r/.git/config", user="root").stdout
        box.commands.run(f"echo '{token}' > /tmp/config")
        assert box.commands.run(scan, user="root", timeout=100).stdout.split() == ["0", "1"], "the control"


def test_trace_and_connect_carry_no_secret(outside: World, make: Make) -> None:
    secret = f"s3cret-{secrets.token_hex(8)}"
    sandbox = make(network={"rules": {"http://api.test": rule("X-Key", secret)}})
    for method in ("TRACE", "CONNECT", "GET"):
        sandbox.commands.run(f"curl -sS -m 5 -X {method} http://api.test/{method}-{secret[-4:]}; true")
    assert sent(outside, f"/GET-{secret[-4:]}")["headers"]["x-key"] == secret, "the control"
    for method in ("TRACE", "CONNECT"):
        assert not outside.internet.heard(f"/{method}-{secret[-4:]}", 0.5)


def test_rules_may_come_and_go_while_it_runs(outside: World, make: Make) -> None:
    sandbox = make(network={"allow_out": ["api.test"], "deny_out": [ALL_TRAFFIC]})
    for value in ("one", "two"):
        sandbox.update_network(
            {
                "allow_out": lambda ctx: list(ctx.rules),
                "deny_out": [ALL_TRAFFIC],
                "rules": {"*.test": rule("X-Key", value)},
            }
            if value == "two"
            else {"allow_out": ["api.test"], "deny_out": [ALL_TRAFFIC], "rules": {"api.test": rule("X-Key", value)}}
        )
        path = f"/{secrets.token_hex(4)}"
        assert fetch(sandbox, f"https://api.test{path}"), "not trusted"
        assert sent(outside, path)["headers"]["x-key"] == value
    sandbox.update_network({})
    path = f"/{secrets.token_hex(4)}"
    sandbox.commands.run(f"curl -ksS -m 10 https://api.test{path}")
    assert "x-key" not in sent(outside, path)["headers"]


def test_every_connection_is_recorded_and_readable_by_api_and_command_line(outside: World, make: Make) -> None:
    sandbox = make(network={"deny_out": [internet.EVIL]})
    fetch(sandbox, "http://good.test/")
    fetch(sandbox, f"http://{internet.EVIL}/")
    fetch(sandbox, f"http://{internet.METADATA}/")
    found = records(outside, sandbox)
    assert [one["name"] for one in found if one["protocol"] == "dns"] == ["good.test"]
    good, evil, metadata = (one for one in found if one["protocol"] == "tcp")
    assert (good["destinationAddress"], good["destinationPort"], good["name"]) == (internet.GOOD, 80, "good.test")
    assert good["sourceAddress"] == "10.0.2.15"
    assert good["allowed"]
    assert good["bytesOut"] > 50
    assert good["bytesIn"] > 50
    assert good["closedAt"]
    assert (evil["verdict"], evil["allowed"]) == ("denied: by denyOut", False)
    assert "private" in metadata["verdict"]
    command = [*outside.networks.enter, sys.executable, "-m", "atoll.cli.main", "connections", sandbox.sandbox_id]
    told = subprocess.run(
        [*command, "--denied", "--data-dir", str(outside.directory / "data")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert internet.EVIL in told.stdout
    assert internet.GOOD not in told.stdout


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_policy_outlives_the_server_and_what_connects_meanwhile_waits(
    outside: World, make: Make, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    sandbox = make(network={"deny_out": [internet.EVIL]})
    sandbox.update_network({"deny_out": [internet.GOOD]})
    sandbox.commands.run(
        f"(sleep 1; curl -sS -m 60 http://{internet.EVIL}/ > /tmp/waited) > /dev/null 2>&1 &", timeout=10
    )
    outside.server.stop(how)
    time.sleep(1.5)
    outside.start_server()
    for name, value in outside.environ.items():
        monkeypatch.setenv(name, value)
    again = Sandbox.connect(sandbox.sandbox_id)
    assert fetch(again, f"http://{internet.GOOD}/") == ""
    assert fetch(again, "http://evil.test/")
    assert "evil" in fetch(again, "http://evil.test/")
    for _ in range(100):
        if again.files.read("/tmp/waited"):
            break
        time.sleep(0.1)
    assert internet.EVIL in again.files.read("/tmp/waited")
    network = again.get_info().network
    assert network is not None
    assert network["deny_out"] == [internet.GOOD]


def test_the_gateway_restarts_alone_and_outlives_the_node(outside: World, make: Make) -> None:
    """Killed, it ends what was open; what comes meanwhile waits; policy and secrets are given to it again."""
    secret = secrets.token_hex(8)
    sandbox = make(network={"deny_out": [internet.EVIL]})
    sandbox.update_network({"deny_out": [internet.GOOD], "rules": {"api.test": rule("X-Key", secret)}})
    hold = "import socket,sys; s=socket.create_connection((sys.argv[1], 80)); print('open', flush=True); s.recv(1)"
    ended = "; echo ended > /tmp/ended"
    run = f'python3 -c "{hold}" {internet.EVIL}'
    sandbox.commands.run(f"({run}{ended}) > /tmp/held 2>&1 &")
    eventually(lambda: "open" in text(sandbox, "/tmp/held"), what="a connection that stays open")

    old_node = outside.server.pid_of("node")
    os.kill(old_node, signal.SIGKILL)
    eventually(lambda: another(outside, "node", old_node), what="another node", within_s=20)
    eventually(lambda: fetch(sandbox, "http://evil.test/"), what="the way out goes on", within_s=20)
    assert not sandbox.files.exists("/tmp/ended"), "the connection did not notice"
    assert fetch(sandbox, f"http://{internet.GOOD}/") == ""

    old = outside.server.pid_of("egress")
    os.kill(old, signal.SIGSTOP)
    sandbox.commands.run(f"(curl -sS -m 60 http://{internet.EVIL}/ > /tmp/waited) > /dev/null 2>&1 &")
    made = make()  # a gateway that does not answer keeps nobody from making and ending sandboxes
    assert Sandbox.kill(made.sandbox_id) is True
    os.kill(old, signal.SIGKILL)
    eventually(lambda: another(outside, "egress", old), what="another gateway", within_s=20)
    eventually(lambda: sandbox.files.exists("/tmp/ended"), what="the open connection ended", within_s=20)
    assert fetch(sandbox, "http://evil.test/")
    assert fetch(sandbox, f"http://{internet.GOOD}/") == ""
    path = f"/{secrets.token_hex(4)}"
    assert fetch(sandbox, f"https://api.test{path}")
    assert sent(outside, path)["headers"]["x-key"] == secret
    eventually(lambda: internet.EVIL in text(sandbox, "/tmp/waited"), what="what waited is served", within_s=20)


def text(sandbox: Sandbox, path: str) -> str:
    return str(sandbox.files.read(path)) if sandbox.files.exists(path) else ""


def another(outside: World, role: str, before: int) -> bool:
    try:
        return outside.server.pid_of(role) != before
    except ProcessLookupError:
        return False


def test_closed_connections_leave_no_descriptor_with_the_server(outside: World, make: Make) -> None:
    sandbox = make(network={"rules": {"api.test": rule("X-Key", "k")}})

    def many() -> None:
        loop = "for i in $(seq 15); do curl -s -m 5 http://good.test/ https://api.test/ http://10.9.9.9/; done; true"
        sandbox.commands.run(loop, timeout=100)

    many()
    before = outside.server.descriptors()
    many()
    for _ in range(100):
        if outside.server.descriptors() <= before + 2:
            break
        time.sleep(0.1)
    assert outside.server.descriptors() <= before + 2
    assert all(one["closedAt"] for one in records(outside, sandbox) if one["protocol"] == "tcp")
